//! `job`: see ARCHITECTURE.md.
