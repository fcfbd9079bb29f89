//! Sweeps: repeated runs of one job in settings that differ in one parameter. Each run becomes a line in a file as soon
//! as it has ended, and an interrupted sweep continues with the missing runs.
//!
//! Starts `exuvia run` and nothing else. Refuses to do: measuring (runs measure themselves, in their reports),
//! printing. Invariant: the points of one file are comparable: same job, kernels, program, CPU, launcher and options. A
//! file with other points is refused.

mod charts;
mod disk_baseline;
mod error;
mod measure;
mod order;
mod page;
mod point;
mod point_log;
mod runner;
mod statistics;
mod table;
mod timeline;
mod variant;
mod weak_scaling;

pub use disk_baseline::DiskTimes;
pub use error::SweepError;
pub use measure::Sweep;
pub use order::remaining;
pub use page::page;
pub use point::{Point, Setting, SweepIdentity, SweepKind};
pub use point_log::PointLog;
pub use runner::RankLauncher;
pub use statistics::{Metg, MetgOf, Rate, Row, Spread, SweepStatistics, figures};
pub use timeline::WorkerLoad;
pub use variant::Variant;
pub use weak_scaling::{JobGrowth, growth};
