//! Checks that ranks can communicate. Start it like a job: `mpirun -n 4 fabric_check`.
//!
//! Every rank sends messages to the next in a ring and takes part in a broadcast of 8 MiB. Rank 0 prints the node of
//! each rank. `fabric_check hold` then waits for a rank to fail, and `fabric_check panic` panics on a thread of rank 1:
//! either must end every rank.

use std::process::exit;
use std::thread;
use std::time::Instant;

use exuvia::fabric::{self, Backoff, Fabric, FabricError, collective};
use exuvia::topology::{FailureDetector, Topology};

const RING: u32 = 7;
const RING_MESSAGES: usize = 40;
const BROADCAST_BYTES: usize = 8 << 20;

fn main() {
    fabric::install_panic_hook();
    let mut fabric = fabric::connect().unwrap_or_else(|error| {
        eprintln!("error: {error}");
        exit(3);
    });
    let mode = std::env::args().nth(1).unwrap_or_default();
    if let Err(error) = check(&mut *fabric, &mode) {
        eprintln!("error: rank {}: {error}", fabric.rank());
        fabric.abort(1);
    }
    if let Err(error) = fabric.finalize(0) {
        eprintln!("error: {error}");
        exit(1);
    }
}

fn check(fabric: &mut dyn Fabric, mode: &str) -> Result<(), FabricError> {
    let (rank, size) = (fabric.rank(), fabric.size());
    let topology = collective::topology(fabric, &exuvia::topology::host(), &mut |_: &mut dyn Fabric| Ok(()))?;
    let mut watch = FailureDetector::new(&topology, rank, None);
    let mut idle = |_: &mut dyn Fabric| match watch.failed_rank() {
        Some(dead) => Err(FabricError::rank_died(&topology, dead)),
        None => Ok(()),
    };
    if rank == 0 {
        describe(&topology);
    }

    // Long and short messages alternate: the short ones must not overtake.
    let length = |i: usize| if i.is_multiple_of(2) { 8 } else { 1 << 20 };
    for i in 0..RING_MESSAGES {
        fabric.send((rank + 1) % size, RING, vec![i as u8; length(i)].into())?;
    }
    let before = (rank + size - 1) % size;
    let mut backoff = Backoff::default();
    for i in 0..RING_MESSAGES {
        let message = loop {
            match fabric.poll()? {
                Some(message) => break message,
                None => backoff.wait(),
            }
            idle(fabric)?;
        };
        backoff.reset();
        assert_eq!((message.source, message.tag), (before, RING));
        assert!(message.bytes == vec![i as u8; length(i)], "message {i} of the ring");
    }

    let pattern = || (0..BROADCAST_BYTES).map(|i| (i % 251) as u8).collect();
    let started = Instant::now();
    let bytes = (rank == 0).then(|| Vec::into(pattern()));
    let bytes = collective::broadcast(fabric, 0, bytes, &mut idle)?;
    assert!(*bytes == pattern(), "the broadcast arrived changed");
    let sums = collective::allgather(fabric, checksum(&bytes).to_le_bytes().to_vec(), &mut idle)?;
    assert!(sums.iter().all(|sum| *sum == sums[0]), "checksums differ");
    if rank == 0 {
        println!("broadcast of {BROADCAST_BYTES} bytes agreed in {:?}", started.elapsed());
    }

    match mode {
        "hold" => {
            println!("rank {rank} holds as process {}", std::process::id());
            loop {
                fabric.poll()?;
                idle(fabric)?;
                backoff.wait();
            }
        }
        "panic" if rank == 1 % size => {
            let worker = thread::spawn(|| panic!("as asked"));
            worker.join().ok();
        }
        _ => {}
    }
    collective::barrier(fabric, &mut idle)
}

fn describe(topology: &Topology) {
    for (rank, host) in topology.hosts().iter().enumerate() {
        let node = topology.node_of(rank as u32);
        let threads = topology.default_threads(rank as u32);
        println!("rank {rank} of {}: node {node} ({}), {threads} threads", topology.size(), host.hostname);
    }
    println!("{}, {} CPU classes", fabric::library(), topology.cpu_classes().len());
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
