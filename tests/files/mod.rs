//! HDF5 files as users have them: inputs with links, virtual parts and filters, outputs beside other data, and files
//! that several programs share.

mod damage;
mod inputs;
mod outputs;
mod sharing;
