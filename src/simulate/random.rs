//! Pseudo-random numbers that are functions of the seed.

/// The purpose of a number, so that no two purposes draw the same one.
#[derive(Clone, Copy, Debug)]
pub(super) enum Draw {
    RankSpeed,
    ShardCost,
    BlockCost,
    SliceCost,
    Placement,
    Answer,
}

/// 64 bits from the seed, a purpose and two numbers (the finalizer of SplitMix64 over each).
pub(super) fn bits(seed: u64, draw: Draw, a: u64, b: u64) -> u64 {
    [draw as u64, a, b].into_iter().fold(seed, |state, part| mix(state ^ mix(part)))
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Maps to `0 ..= 1`, but never to 0.
fn unit(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// Maps to `-1 ..= 1`.
pub(super) fn symmetric(bits: u64) -> f64 {
    2.0 * unit(bits) - 1.0
}

/// A lognormal number with mean 1, from a normal distribution with standard deviation `sigma` (Box and Muller 1958).
pub(super) fn lognormal(bits: u64, sigma: f64) -> f64 {
    if sigma == 0.0 {
        return 1.0;
    }
    let normal = (-2.0 * unit(bits).ln()).sqrt() * (std::f64::consts::TAU * unit(mix(bits))).cos();
    (sigma * normal - sigma * sigma / 2.0).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lognormal_has_mean_1_and_the_spread_asked_for() {
        let draws: Vec<f64> = (0..100_000).map(|n| lognormal(bits(7, Draw::ShardCost, n, 0), 0.5)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let squares = draws.iter().map(|x| x.ln() * x.ln()).sum::<f64>() / draws.len() as f64;
        assert!((0.99..1.01).contains(&mean), "{mean}");
        // Variance 0.25 around -0.125.
        assert!((0.25..0.28).contains(&squares), "{squares}");
        assert_eq!(lognormal(1, 0.0), 1.0);
    }
}
