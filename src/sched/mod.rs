//! `sched`: see ARCHITECTURE.md.
