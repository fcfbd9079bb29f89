//! Files that several jobs, programs or users have in common.
