//! `cli`: see ARCHITECTURE.md.
