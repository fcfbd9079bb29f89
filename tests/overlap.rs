//! Halos travel while their receiver computes, and no rank computes without the halos that it needs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::Lab;
use exuvia::exec::{self, ExitCode, Options, Progress, Resume, Signal, TierPolicy};
use exuvia::fabric::{self, Counters, Fabric, FabricError, Message, Payload, Rank};
use exuvia::job::Job;
use exuvia::plan::{self, Layout, Machine, Plan};
use exuvia::report::Report;
use exuvia::sched;
use exuvia::tensor::{Dtype, Shape};

/// The number of points on each side: enough for the boxes of 7 ranks to be cut at their borders.
const SIDE: u64 = 760;
/// The number of kinds of tags. `exec::link` numbers them.
const KINDS: u32 = 16;
const PROGRESS: u32 = 4;
const SHARD: u32 = 7;
const SCHEDULER: u32 = 9;

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

/// An observer of a rank's messages, which may hold some of them back.
trait Watch: fmt::Debug {
    fn send(&mut self, inner: &mut dyn Fabric, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        inner.send(to, tag, bytes)
    }

    fn poll(&mut self, inner: &mut dyn Fabric) -> Result<Option<Message>, FabricError>;
}

/// A rank's end of the fabric under observation.
#[derive(Debug)]
struct Watched<W> {
    inner: Box<dyn Fabric + Send>,
    watch: W,
    /// Whether rank 0 has used the report.
    reported: Arc<AtomicBool>,
}

impl<W: Watch> Fabric for Watched<W> {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> u32 {
        self.inner.size()
    }

    fn send(&mut self, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        self.watch.send(&mut *self.inner, to, tag, bytes)
    }

    fn poll(&mut self) -> Result<Option<Message>, FabricError> {
        self.watch.poll(&mut *self.inner)
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

    fn shrink(&mut self, survivors: &[Rank]) {
        self.inner.shrink(survivors);
    }

    fn abort(&mut self, code: i32) -> ! {
        self.inner.abort(code)
    }

    fn finalize(self: Box<Self>, code: i32) -> Result<(), FabricError> {
        // From here on the process may end at any moment.
        assert!(self.rank() != 0 || self.reported.load(Ordering::SeqCst));
        self.inner.finalize(code)
    }
}

/// Runs the job on two ranks of this process. The first rank uses this thread.
fn run_watched(
    lab: &Lab,
    options: &Options,
    first: impl Watch + 'static,
    second: impl Watch + Send + 'static,
) -> Report {
    let job = lab.path("job.toml");
    let reported = Arc::new(AtomicBool::new(false));
    let conclude = |_: &Report| {
        reported.store(true, Ordering::SeqCst);
        ExitCode::Done
    };
    let run = |fabric: Box<dyn Fabric>| {
        exec::run(fabric, &job, options, Signal::default(), conclude).unwrap_or_else(|failure| panic!("{failure:?}"))
    };
    let mut fabrics = fabric::local(2);
    let second = Watched { inner: fabrics.pop().unwrap(), watch: second, reported: reported.clone() };
    let first = Watched { inner: fabrics.pop().unwrap(), watch: first, reported: reported.clone() };
    thread::scope(|scope| {
        scope.spawn(|| run(Box::new(second)));
        run(Box::new(first)).unwrap()
    })
}

/// Messages that are held back until an event happens, but only for a limited time.
#[derive(Debug, Default)]
struct KeptBack {
    messages: Vec<(Rank, u32, Payload)>,
    since: Option<Instant>,
}

impl KeptBack {
    fn put(&mut self, to: Rank, tag: u32, bytes: Payload) {
        self.since.get_or_insert_with(Instant::now);
        self.messages.push((to, tag, bytes));
    }

    fn is_over(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() > Duration::from_secs(30))
    }

    fn release(&mut self, inner: &mut dyn Fabric) -> Result<(), FabricError> {
        self.messages.drain(..).try_for_each(|(to, tag, bytes)| inner.send(to, tag, bytes))
    }
}

/// The number of blocks that rank 0 has computed of its current stage, known once it has begun the second iteration.
static COMPUTED: AtomicU64 = AtomicU64::new(0);
static SECOND: AtomicBool = AtomicBool::new(false);
/// The number of these blocks that need no data from rank 1.
static INTERIOR: AtomicU64 = AtomicU64::new(u64::MAX);
static GAVE_UP: AtomicBool = AtomicBool::new(false);

fn show(progress: &Progress) {
    if SECOND.load(Ordering::SeqCst) {
        COMPUTED.fetch_max(progress.blocks_done, Ordering::SeqCst);
    }
}

/// An observer that delays rank 1's halos until rank 0 has computed all blocks that do not need them.
#[derive(Debug, Default)]
struct Late(KeptBack);

impl Watch for Late {
    fn send(&mut self, inner: &mut dyn Fabric, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        match tag % KINDS {
            // Without these messages rank 0 shows only its own progress.
            PROGRESS => {}
            SHARD if tag < fabric::TAG_LIMIT => self.0.put(to, tag, bytes),
            _ => inner.send(to, tag, bytes)?,
        }
        Ok(())
    }

    fn poll(&mut self, inner: &mut dyn Fabric) -> Result<Option<Message>, FabricError> {
        let computed = COMPUTED.load(Ordering::SeqCst) >= INTERIOR.load(Ordering::SeqCst);
        if !computed && self.0.is_over() && !self.0.messages.is_empty() {
            GAVE_UP.store(true, Ordering::SeqCst);
        }
        if computed || self.0.is_over() {
            self.0.release(inner)?;
        }
        let message = inner.poll()?;
        if message.as_ref().is_some_and(|message| message.tag % KINDS == SHARD) {
            SECOND.store(true, Ordering::SeqCst);
        }
        Ok(message)
    }
}

/// An observer that does nothing.
#[derive(Debug)]
struct Nothing;

impl Watch for Nothing {
    fn poll(&mut self, inner: &mut dyn Fabric) -> Result<Option<Message>, FabricError> {
        inner.poll()
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
    let report = run_watched(&lab, &options, Nothing, Late::default());
    assert!(!GAVE_UP.load(Ordering::SeqCst), "rank 0 computed nothing before its halos came");
    assert!(lab.results(&report) == expected);
    // All data for rank 0 came while it computed, and matched the plan of one iteration.
    let counts = &report.ranks[0].stages[0].counts;
    assert_eq!(counts.overlapped_bytes, counts.moved_bytes());
    assert_eq!(report.totals().moved_bytes(), plan.totals().bytes.moved);
}

/// Tests iterations, and ranks that lend each other blocks whose halos may still be pending.
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

/// A record of rank 0's reaction to rank 1's request for work.
#[derive(Debug, Default)]
struct Lending {
    /// The run of a stage that the request is about, as in its tags. 0 before the request.
    run: AtomicU32,
    /// Whether rank 0 has a request that it has not answered, and the number of its checks for messages since.
    asked: AtomicBool,
    looks: AtomicU64,
    /// Whether rank 0 granted work to rank 1 while rank 1 held back data that the work needs.
    early: AtomicBool,
    /// Whether rank 0 waited before it granted the work.
    waited: AtomicBool,
    over: AtomicBool,
}

impl Lending {
    /// The number of checks after which rank 0 would have answered a request, if it could.
    const LOOKS: u64 = 50;

    fn message(&self, tag: u32, bytes: &[u8], from: Rank) -> Option<sched::Message> {
        let of_run = tag % KINDS == SCHEDULER && tag / KINDS == self.run.load(Ordering::SeqCst);
        of_run.then(|| sched::Message::decode(bytes, from, 1 - from).unwrap().0)
    }
}

/// An observer of rank 0, which has so much work that rank 1 asks it for some.
#[derive(Debug)]
struct Lender(Arc<Lending>);

impl Watch for Lender {
    fn send(&mut self, inner: &mut dyn Fabric, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        let answer = self.0.message(tag, &bytes, 0);
        if matches!(answer, Some(sched::Message::Grant { .. } | sched::Message::Refuse { .. })) {
            self.0.asked.store(false, Ordering::SeqCst);
        }
        if matches!(answer, Some(sched::Message::Grant { .. })) && !self.0.over.load(Ordering::SeqCst) {
            self.0.early.store(true, Ordering::SeqCst);
        }
        inner.send(to, tag, bytes)
    }

    fn poll(&mut self, inner: &mut dyn Fabric) -> Result<Option<Message>, FabricError> {
        self.0.looks.fetch_add(1, Ordering::SeqCst);
        let message = inner.poll()?;
        let heard = message.as_ref().and_then(|message| self.0.message(message.tag, &message.bytes, 1));
        if matches!(heard, Some(sched::Message::Steal(_))) {
            self.0.looks.store(0, Ordering::SeqCst);
            self.0.asked.store(true, Ordering::SeqCst);
        }
        Ok(message)
    }
}

/// An observer of rank 1, whose halos arrive after rank 0 has or has not waited for them before it granted work.
#[derive(Debug)]
struct Thief(Arc<Lending>, KeptBack);

impl Watch for Thief {
    fn send(&mut self, inner: &mut dyn Fabric, to: Rank, tag: u32, bytes: Payload) -> Result<(), FabricError> {
        if tag < fabric::TAG_LIMIT && tag % KINDS == SHARD && !self.0.over.load(Ordering::SeqCst) {
            self.0.run.store(tag / KINDS, Ordering::SeqCst);
            self.1.put(to, tag, bytes);
            return Ok(());
        }
        inner.send(to, tag, bytes)
    }

    fn poll(&mut self, inner: &mut dyn Fabric) -> Result<Option<Message>, FabricError> {
        if !self.1.messages.is_empty() {
            let waited = self.0.asked.load(Ordering::SeqCst) && self.0.looks.load(Ordering::SeqCst) > Lending::LOOKS;
            if waited || self.0.early.load(Ordering::SeqCst) || self.1.is_over() {
                self.0.waited.store(waited, Ordering::SeqCst);
                self.0.over.store(true, Ordering::SeqCst);
                self.1.release(inner)?;
            }
        }
        inner.poll()
    }
}

#[test]
fn a_thief_gets_a_block_when_its_halos_have_come() {
    /// The height of two boxes, one above the other, cut at their border. Blocks are so small that rank 0 has many when
    /// rank 1 asks.
    const HEIGHT: u64 = 4000;
    const WIDTH: u64 = 200;
    let lab = Lab::bare(&["heat", "reaction"]);
    let point = |i: u64| ((i * 7919 % 1009) as f64 / 1009.0).to_le_bytes();
    lab.dataset(Dtype::F64, &[HEIGHT, WIDTH], (0..HEIGHT * WIDTH).flat_map(point).collect());
    // The rows of the first box take long.
    let steps = |y| if y < HEIGHT / 2 { 40u32 } else { 1 }.to_le_bytes();
    lab.dataset_of("steps.h5", Dtype::U32, &[HEIGHT], (0..HEIGHT).flat_map(steps).collect());
    let text = format!(
        "{TENSORS}[tensors.steps]\nfile = \"steps.h5\"\ndataset = \"x\"\n[tensors.between]\ndtype = \"f64\"\n{}\
         [[stages]]\nname = \"react\"\nkernel = \"reaction.wasm\"\nexport = \"react\"\n\
         compute = \"between[y~1,x~1], steps[y] -> end[y,x]\"\nboundary = \"clamp\"\nlimits = {{ memory = \"512KiB\" }}\n",
        step("start", "between")
    );
    fs::write(lab.path("job.toml"), text).unwrap();
    let options = Options {
        threads: Some(1),
        tier: TierPolicy::Baseline,
        cache_dir: Some(lab.path("cache")),
        resume: Resume::Fresh,
        ..Options::default()
    };
    let expected = lab.results(&lab.run_here(&options));
    let lending = Arc::new(Lending::default());
    let thief = Thief(lending.clone(), KeptBack::default());
    let report = run_watched(&lab, &options, Lender(lending.clone()), thief);
    assert!(lending.waited.load(Ordering::SeqCst) && !lending.early.load(Ordering::SeqCst), "{lending:?}");
    assert!(lab.results(&report) == expected);
    assert!(report.totals().stolen_slices > 0);
}
