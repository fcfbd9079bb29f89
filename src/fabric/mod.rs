//! `fabric`: see ARCHITECTURE.md.
