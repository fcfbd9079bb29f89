//! `topology`: see ARCHITECTURE.md.
