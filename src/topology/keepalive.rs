//! The detection of failed ranks on other nodes, and of failed nodes, independently of the launcher.
//!
//! A rank listens on a TCP port, and ranks of other nodes connect to it. The connections are not accepted and carry no
//! data: the kernel closes them when the process ends, and the kernel at the other end probes them with keepalive
//! messages. A rank that is busy or stopped is not taken for a failed one.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::sockopt;

/// The settings of TCP keepalive.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// The idle time before the first probe.
    pub idle_s: u32,
    pub interval_s: u32,
    /// The number of unanswered probes after which the connection counts as closed.
    pub probes: u32,
}

impl Keepalive {
    /// The settings between the launcher and its daemons. A daemon that is cut off ends its ranks within 10 s.
    pub const DAEMONS: Keepalive = Keepalive { idle_s: 4, interval_s: 2, probes: 3 };
    /// The settings between ranks, for detection within 12 to 16 s. A rank on a node that is cut off has ended by then.
    const RANKS: Keepalive = Keepalive { idle_s: 4, interval_s: 3, probes: 4 };

    const fn least_s(&self) -> u32 {
        self.interval_s * self.probes
    }

    const fn most_s(&self) -> u32 {
        self.idle_s + self.least_s()
    }
}

const _: () = assert!(Keepalive::RANKS.least_s() > Keepalive::DAEMONS.most_s());

/// The time limit for a connection, during which other ranks wait.
const CONNECT: Duration = Duration::from_secs(2);

/// The TCP port by which ranks of other nodes detect the failure of this one.
#[derive(Debug)]
pub struct LivenessListener {
    listener: TcpListener,
    addresses: Vec<IpAddr>,
}

impl LivenessListener {
    /// Opens a port that is reachable at these addresses of this node.
    pub fn open(addresses: Vec<IpAddr>) -> std::io::Result<LivenessListener> {
        Ok(LivenessListener { listener: TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?, addresses })
    }

    /// The socket addresses of the port.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let Ok(here) = self.listener.local_addr() else { return Vec::new() };
        self.addresses.iter().map(|address| SocketAddr::new(*address, here.port())).collect()
    }
}

/// A connection to the listener of another rank.
#[derive(Debug)]
pub(super) struct Lifeline {
    pub addresses: Vec<SocketAddr>,
    stream: TcpStream,
}

impl Lifeline {
    /// Connects to the first of these addresses that answers.
    pub fn to(addresses: &[SocketAddr]) -> std::io::Result<Lifeline> {
        let mut result = Err(ErrorKind::AddrNotAvailable.into());
        for address in addresses {
            result = TcpStream::connect_timeout(address, CONNECT);
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
        Ok(Lifeline { addresses: addresses.to_vec(), stream })
    }

    /// Returns whether the rank at the other end, or its node, has failed.
    pub fn is_cut(&self) -> bool {
        match (&self.stream).read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}
