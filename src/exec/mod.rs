//! `exec`: see ARCHITECTURE.md.
