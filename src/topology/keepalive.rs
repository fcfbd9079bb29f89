//! Noticing the death of ranks on other nodes, and of their nodes, whatever the launcher does about it.
//!
//! A rank has a door, a TCP port, and ranks of other nodes connect to it. Nobody takes the connections nor sends anything: a kernel
//! ends them when the process is gone, and the other kernel asks again and again whether there still is one. So a rank that is
//! busy or stopped is no dead one.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt;

/// What a kernel does to find out whether the other side of a silent connection is still there.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// Silence before it asks.
    pub idle_s: u32,
    pub interval_s: u32,
    /// Questions without an answer that prove that nobody is there.
    pub probes: u32,
}

impl Keepalive {
    /// Between the launcher and its daemons. One that is cut off ends its ranks, in 10 s at the latest.
    pub const DAEMONS: Keepalive = Keepalive { idle_s: 4, interval_s: 2, probes: 3 };
    /// Between ranks: 12 to 16 s. Whoever is taken for dead because its node is cut off is dead by then.
    const RANKS: Keepalive = Keepalive { idle_s: 4, interval_s: 3, probes: 4 };

    const fn least_s(&self) -> u32 {
        self.interval_s * self.probes
    }

    const fn most_s(&self) -> u32 {
        self.idle_s + self.least_s()
    }
}

const _: () = assert!(Keepalive::RANKS.least_s() > Keepalive::DAEMONS.most_s());

/// For a door to be found: other ranks wait meanwhile.
const CONNECT: Duration = Duration::from_secs(2);

/// By which ranks of other nodes tell whether this one lives.
#[derive(Debug)]
pub struct LivenessListener {
    listener: TcpListener,
    addresses: Vec<IpAddr>,
}

impl LivenessListener {
    /// At these addresses of this node.
    pub fn open(addresses: Vec<IpAddr>) -> std::io::Result<LivenessListener> {
        Ok(LivenessListener { listener: TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?, addresses })
    }

    /// Where others may try to reach it.
    pub fn places(&self) -> Vec<SocketAddr> {
        let Ok(here) = self.listener.local_addr() else { return Vec::new() };
        self.addresses.iter().map(|address| SocketAddr::new(*address, here.port())).collect()
    }
}

/// A connection to the door of another rank.
#[derive(Debug)]
pub(super) struct Lifeline {
    pub places: Vec<SocketAddr>,
    stream: TcpStream,
}

impl Lifeline {
    /// To the door at the first of these places that answers.
    pub fn to(places: &[SocketAddr]) -> std::io::Result<Lifeline> {
        let mut result = Err(ErrorKind::AddrNotAvailable.into());
        for place in places {
            result = TcpStream::connect_timeout(place, CONNECT);
            if result.is_ok() {
                break;
            }
        }
        let stream = result?;
        let seconds = |number: u32| Duration::from_secs(u64::from(number));
        let Keepalive { idle_s, interval_s, probes } = Keepalive::RANKS;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, seconds(idle_s))?;
        sockopt::set_tcp_keepintvl(&stream, seconds(interval_s))?;
        sockopt::set_tcp_keepcnt(&stream, probes)?;
        stream.set_nonblocking(true)?;
        Ok(Lifeline { places: places.to_vec(), stream })
    }

    /// Whether the rank at the other end is gone, perhaps with its node.
    pub fn is_cut(&self) -> bool {
        match (&self.stream).read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}
