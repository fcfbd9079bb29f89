//! The patterns in plain MPI, written by hand for this program alone, without a framework.

use std::time::Instant;

use mpi::request::scope;
use mpi::traits::*;

use super::{POINTS, Pattern, start};

/// The argument that makes this program a rank of the handwritten one. A pattern and runs (`LENGTH:ITERATIONS`) follow.
pub const ARGUMENT: &str = "--by-hand";

/// Does the same work as the kernels.
pub fn busy(w: &mut [f64], length: u64) {
    for _ in 0..length {
        w.iter_mut().for_each(|w| *w = 3.9 * *w * (1.0 - *w));
    }
}

/// Prints each run on rank 0: its length, the nanoseconds per iteration, and a hash of the last iteration.
pub fn run(arguments: &[String]) {
    let universe = mpi::initialize().unwrap();
    let world = universe.world();
    let pattern = Pattern::ALL.into_iter().find(|pattern| pattern.name() == arguments[0]).unwrap();
    for run in &arguments[1..] {
        let (length, iterations) = run.split_once(':').unwrap();
        let (length, iterations): (u64, u64) = (length.parse().unwrap(), iterations.parse().unwrap());
        let mut own = own_part(&world);
        let mut whole = vec![0.0; POINTS];
        world.barrier();
        let started = Instant::now();
        match pattern.radius() {
            Some(radius) => halos(&world, radius, &mut own, length, iterations),
            None => wholes(&world, pattern, &mut own, &mut whole, length, iterations),
        }
        world.barrier();
        let ns = started.elapsed().as_nanos() as f64 / iterations as f64;
        world.all_gather_into(&own[..], &mut whole[..]);
        if world.rank() == 0 {
            let bytes: Vec<u8> = whole.iter().flat_map(|x| x.to_le_bytes()).collect();
            println!("{length} {ns} {}", blake3::hash(&bytes));
        }
    }
}

fn own_part(world: &impl Communicator) -> Vec<f64> {
    let points = POINTS / world.size() as usize;
    let first = world.rank() as usize * points;
    start()[first..first + points].to_vec()
}

/// Gives each rank `radius` elements from the rank before it and from the rank after it, in a ring.
fn halos(world: &impl Communicator, radius: usize, own: &mut [f64], length: u64, iterations: u64) {
    let (rank, size) = (world.rank(), world.size());
    let (left, right) = (world.process_at_rank((rank + size - 1) % size), world.process_at_rank((rank + 1) % size));
    let mut padded = vec![0.0; own.len() + 2 * radius];
    for _ in 0..iterations {
        padded[radius..radius + own.len()].copy_from_slice(own);
        let (low, rest) = padded.split_at_mut(radius);
        let (inner, high) = rest.split_at_mut(own.len());
        scope(|scope| {
            let from_left = left.immediate_receive_into_with_tag(scope, low, 0);
            let from_right = right.immediate_receive_into_with_tag(scope, high, 1);
            let to_right = right.immediate_send_with_tag(scope, &inner[inner.len() - radius..], 0);
            let to_left = left.immediate_send_with_tag(scope, &inner[..radius], 1);
            from_left.wait_without_status();
            from_right.wait_without_status();
            to_right.wait_without_status();
            to_left.wait_without_status();
        });
        for (x, value) in own.iter_mut().enumerate() {
            let around = &padded[x..=x + 2 * radius];
            *value = around.iter().skip(1).fold(around[0], |sum, u| sum + u) / around.len() as f64;
        }
        busy(own, length);
    }
}

/// Gives each rank the whole tensor.
fn wholes(world: &impl Communicator, pattern: Pattern, own: &mut [f64], u: &mut [f64], length: u64, iterations: u64) {
    let first = world.rank() as usize * own.len();
    for _ in 0..iterations {
        world.all_gather_into(&*own, u);
        let sum: f64 = u.iter().fold(0.0, |sum, u| sum + u);
        for (x, value) in (first..).zip(own.iter_mut()) {
            let at = |k: usize| u[(x + k * POINTS / 5) % POINTS];
            *value = match pattern {
                Pattern::Spread => (at(0) + at(1) + at(2) + at(3) + at(4)) / 5.0,
                _ => (sum / POINTS as f64 + u[x]) / 2.0,
            };
        }
        busy(own, length);
    }
}
