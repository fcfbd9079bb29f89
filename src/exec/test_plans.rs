//! Plans of small stages, for unit tests.

use crate::job::Job;
use crate::plan::{Layout, Machine, StagePlan, plan};
use crate::tensor::{Dtype, Shape};

/// Plans a stage that reads a tensor of 600 x 500 numbers.
pub fn stage(compute: &str, output: &str, ranks: u32) -> StagePlan {
    stage_on([600, 500], compute, output, ranks)
}

/// Plans a stage that reads a tensor of this shape.
pub fn stage_on(shape: [u64; 2], compute: &str, output: &str, ranks: u32) -> StagePlan {
    let text = format!(
        "[tensors]\nx = {{ file = \"i\", dataset = \"x\" }}\n\
         y = {{ create = \"o\", dataset = \"y\", dtype = \"f64\"{output} }}\n\
         [[stages]]\nkernel = \"k\"\ncompute = {compute}\n"
    );
    let job = Job::parse(&text, "job.toml".as_ref()).unwrap();
    let layout = Layout { dtype: Dtype::F64, shape: Shape::new(shape).unwrap(), chunk: None };
    let machine = Machine { ranks, ranks_per_node: ranks, threads: 4, memory_bytes: 16 << 20 };
    plan(&job, &[("x".to_owned(), layout)].into(), &machine).unwrap().stages.remove(0)
}
