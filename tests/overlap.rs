//! Halos travel while their receiver computes.
#![expect(clippy::unwrap_used, reason = "a test's unwrap is its assertion")]

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use exuvia::exec::{self, Options, Progress, Signal, TierPolicy};
use exuvia::fabric::{self, Counters, Fabric, FabricError, Message, Payload, Rank};
use exuvia::job::Job;
use exuvia::plan::{self, Layout, Machine, Plan};
use exuvia::tensor::{Dtype, Shape};
use lab::Lab;

/// Points on each side: enough for boxes of 7 ranks to be cut at their borders.
const SIDE: u64 = 760;
/// Kinds of tags; their numbers are `exec::link`'s.
const KINDS: u32 = 16;
const PROGRESS: u32 = 4;
const SHARD: u32 = 7;

const TENSORS: &str = "[tensors.start]\nfile = \"in.h5\"\ndataset = \"x\"\n\
                       [tensors.end]\ncreate = \"out.h5\"\ndataset = \"end\"\ndtype = \"f64\"\n";

fn step(from: &str, to: &str) -> String {
    format!(
        "[[stages]]\nname = \"{to}\"\nkernel = \"heat.wasm\"\nexport = \"heat2d\"\n\
         compute = \"{from}[y~1,x~1] -> {to}[y,x]\"\nboundary = \"clamp\"\n"
    )
}

fn lab() -> Lab {
    let lab = Lab::new(&["heat"]);
    let point = |i: u64| ((i * 7919 % 1009) as f64).to_le_bytes();
    lab.dataset(Dtype::F64, &[SIDE, SIDE], (0..SIDE * SIDE).flat_map(point).collect());
    lab
}

fn iterated(lab: &Lab, count: u64) {
    let text =
        format!("{TENSORS}{}[iterate]\ncount = {count}\nexchange = [[\"start\", \"end\"]]\n", step("start", "end"));
    fs::write(lab.path("job.toml"), text).unwrap();
}

fn planned(lab: &Lab, ranks: u32) -> Plan {
    let job = Job::load(&lab.path("job.toml")).unwrap();
    let layout = Layout { dtype: Dtype::F64, shape: Shape::new([SIDE, SIDE]).unwrap(), chunk: None };
    let machine = Machine { ranks, ranks_per_node: ranks, threads: 1, memory_bytes: 1 << 32 };
    plan::plan(&job, &BTreeMap::from([("start".to_owned(), layout)]), &machine).unwrap()
}

/// Blocks that rank 0 has computed of the stage that it is in, known once it has begun with the second iteration.
static COMPUTED: AtomicU64 = AtomicU64::new(0);
static SECOND: AtomicBool = AtomicBool::new(false);
/// How many of them need nothing of rank 1.
static INTERIOR: AtomicU64 = AtomicU64::new(u64::MAX);
static GAVE_UP: AtomicBool = AtomicBool::new(false);

fn show(progress: &Progress) {
    if SECOND.load(Ordering::SeqCst) {
        COMPUTED.fetch_max(progress.blocks_done, Ordering::SeqCst);
    }
}

/// Rank 1's end of the fabric, which keeps halos back until rank 0 has computed all that it can without them.
#[derive(Debug)]
struct Late {
    inner: Box<dyn Fabric + Send>,
    kept: Vec<(Rank, u32, Payload)>,
    since: Option<Instant>,
}

impl Late {
    fn release(&mut self) -> Result<(), FabricError> {
        let patient = self.since.is_none_or(|since| since.elapsed() < Duration::from_secs(30));
        let computed = COMPUTED.load(Ordering::SeqCst) >= INTERIOR.load(Ordering::SeqCst);
        if !computed && patient {
            return Ok(());
        }
        if !patient && !self.kept.is_empty() {
            GAVE_UP.store(true, Ordering::SeqCst);
        }
        self.kept.drain(..).try_for_each(|(to, tag, bytes)| self.inner.send(to, tag, bytes))
    }
}

impl Fabric for Late {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> u32 {
        self.inner.size()
    }

    fn send(&mut self, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        match tag % KINDS {
            // What rank 0 shows is then its own.
            PROGRESS => Ok(()),
            SHARD if tag < fabric::TAG_LIMIT => {
                self.since.get_or_insert_with(Instant::now);
                self.kept.push((to, tag, bytes));
                Ok(())
            }
            _ => self.inner.send(to, tag, bytes),
        }
    }

    fn poll(&mut self) -> Result<Option<Message>, FabricError> {
        self.release()?;
        let message = self.inner.poll()?;
        if message.as_ref().is_some_and(|message| message.tag % KINDS == SHARD) {
            SECOND.store(true, Ordering::SeqCst);
        }
        Ok(message)
    }

    fn poll_from(&mut self, source: Rank, tag: u32) -> Result<Option<Message>, FabricError> {
        self.inner.poll_from(source, tag)
    }

    fn progress(&mut self) -> Result<(), FabricError> {
        self.inner.progress()
    }

    fn sends_pending(&self) -> usize {
        self.inner.sends_pending()
    }

    fn counters(&self) -> Counters {
        self.inner.counters()
    }

    fn outlives_ranks(&self) -> bool {
        self.inner.outlives_ranks()
    }

    fn keep(&mut self, survivors: &[Rank]) {
        self.inner.keep(survivors);
    }

    fn abort(&mut self, code: i32) -> ! {
        self.inner.abort(code)
    }

    fn finalize(self: Box<Self>, code: i32) -> Result<(), FabricError> {
        self.inner.finalize(code)
    }
}

#[test]
fn workers_do_not_wait_for_what_they_do_not_need() {
    let lab = lab();
    iterated(&lab, 2);
    let expected = lab.results(&lab.run(1, &["--tier", "baseline"]));
    let plan = planned(&lab, 2);
    let stage = &plan.stages[0];
    let (own, blocks) = (&stage.owned(1, 0)[0], stage.blocks(0).collect::<Vec<_>>());
    let is_interior =
        |tile: &plan::Tile| stage.sources(0, &stage.region(0, tile)).iter().all(|part| own.contains(&part.source));
    let interior = blocks.iter().filter(|tile| is_interior(tile)).count();
    assert!(interior > 0 && interior < blocks.len());
    INTERIOR.store(interior as u64, Ordering::SeqCst);

    let options = Options {
        threads: Some(1),
        tier: TierPolicy::Baseline,
        cache_dir: Some(lab.path("cache")),
        progress: Some(show),
        ..Options::default()
    };
    let job = lab.path("job.toml");
    let run = |fabric: Box<dyn Fabric>| {
        exec::run(fabric, &job, &options, Signal::default()).unwrap_or_else(|failure| panic!("{failure:?}"))
    };
    let mut fabrics = fabric::local(2);
    let late = Late { inner: fabrics.pop().unwrap(), kept: Vec::new(), since: None };
    let report = thread::scope(|scope| {
        scope.spawn(|| run(Box::new(late)));
        run(fabrics.pop().unwrap()).unwrap()
    });
    assert!(!GAVE_UP.load(Ordering::SeqCst), "rank 0 computed nothing before its halos came");
    assert!(lab.results(&report) == expected);
    // All that rank 0 got came while it computed, and it was what the plan says of one iteration.
    let counts = &report.ranks[0].stages[0].counts;
    assert_eq!(counts.overlapped_bytes, counts.moved_bytes());
    assert_eq!(report.totals().moved_bytes(), plan.totals().bytes.moved);
}

/// In iterations, and where ranks lend each other blocks whose halos may still be on their way.
#[test]
fn boxes_cut_at_their_borders_give_the_same_bits() {
    let lab = lab();
    let chained =
        format!("{TENSORS}[tensors.between]\ndtype = \"f64\"\n{}{}", step("start", "between"), step("between", "end"));
    for (job, stage) in [("iterated", 0), ("chained", 1)] {
        match job {
            "iterated" => iterated(&lab, 5),
            _ => fs::write(lab.path("job.toml"), &chained).unwrap(),
        }
        let expected = lab.results(&lab.run(1, &["--threads", "2"]));
        for ranks in [2, 3, 4, 7] {
            let grid = planned(&lab, ranks).stages[stage].process_grid.clone().unwrap();
            assert!(grid.rim.iter().any(|rim| *rim > 0), "{job} on {ranks} ranks");
            let report = lab.run(ranks, &["--threads", if ranks == 3 { "2" } else { "1" }]);
            assert!(lab.results(&report) == expected, "{job} on {ranks} ranks");
            assert!(report.totals().overlapped_bytes <= report.totals().moved_bytes());
        }
    }
}
