//! The `exuvia` program; everything is in the library.

fn main() {
    std::process::exit(exuvia::cli::main());
}
