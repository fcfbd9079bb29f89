use super::*;
use proptest::prelude::*;

const CLASS: CostClass = CostClass(0);

fn drive(blocks: &[u64], limit: u64, workers: usize, granularity: Granularity, choices: &[usize]) -> Vec<Span> {
    let mut sched = Scheduler::new(blocks.len() as u64, limit, workers, granularity);
    let mut pending: Vec<Action> = sched.begin(0);
    for worker in 0..workers {
        pending.extend(sched.on(0, Event::Idle { worker, class: CLASS }));
    }
    let (mut spans, mut in_memory, mut complete, mut over) = (Vec::new(), 0u64, 0, 0);
    let mut choice = choices.iter().cycle();
    while !pending.is_empty() {
        // The world answers in any order.
        let action = pending.swap_remove(choice.next().unwrap() % pending.len());
        match action {
            Action::Fetch { block } => {
                in_memory += 1;
                assert!(in_memory <= limit);
                pending.extend(sched.on(0, Event::Fetched { block, slices: blocks[block as usize] }));
            }
            Action::Start { worker, span } => {
                spans.push(span);
                let elapsed_ns = 1000 * span.len;
                pending.extend(sched.on(0, Event::Finished { span, elapsed_ns, class: CLASS }));
                pending.extend(sched.on(0, Event::Idle { worker, class: CLASS }));
            }
            Action::Write { block } => {
                in_memory -= 1;
                pending.extend(sched.on(0, Event::Written { block }));
            }
            Action::Complete => complete += 1,
            Action::Over => over += 1,
            _ => panic!("a rank alone talks to nobody: {action:?}"),
        }
    }
    assert_eq!((complete, over), (1, 1), "the end is said once");
    spans
}

proptest! {
    #[test]
    fn every_slice_runs_once_in_any_order_of_events(
        blocks in proptest::collection::vec(0u64..50, 0..12),
        limit in 1u64..5,
        workers in 1usize..4,
        fixed in proptest::option::of(1u64..9),
        choices in proptest::collection::vec(0usize..1000, 1..40),
    ) {
        let granularity = fixed.map_or(Granularity::Adaptive, Granularity::Fixed);
        let spans = drive(&blocks, limit, workers, granularity, &choices);
        for (block, slices) in blocks.iter().enumerate() {
            let mut seen = vec![0; *slices as usize];
            for span in spans.iter().filter(|s| s.block == block as u64) {
                for slice in span.start..span.start + span.len {
                    seen[slice as usize] += 1;
                }
            }
            prop_assert!(seen.iter().all(|n| *n == 1), "block {block}: {seen:?}");
        }
    }
}

#[test]
fn the_first_task_is_one_slice_and_tasks_grow_to_the_target() {
    let spans = drive(&[1_000_000; 4], 2, 2, Granularity::Adaptive, &[0]);
    assert_eq!(spans[0].len, 1);
    // 1 us a slice: 5,000 slices are 5 ms.
    assert!(spans.iter().any(|s| s.len == 5_000), "{:?}", spans.iter().map(|s| s.len).max());
    // The last tasks shrink so that workers end together.
    assert!(spans.last().unwrap().len < 100);
    // A worker alone has nobody to wait for: its tasks end where blocks do.
    let spans = drive(&[1_000_000; 4], 2, 1, Granularity::Adaptive, &[0]);
    assert!(spans.len() < 4 * 201 + 6, "{}", spans.len());
}
