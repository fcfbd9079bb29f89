//! `store`: see ARCHITECTURE.md.
