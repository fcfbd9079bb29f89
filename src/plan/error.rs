/// Why a job cannot be planned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    #[error("stage '{stage}': {operand} has {indices} indices, but tensor '{tensor}' has {rank} dimensions {shape}")]
    Rank { stage: String, operand: String, tensor: String, indices: usize, rank: usize, shape: String },
    #[error("stage '{stage}': index '{index}' is {extent} in {operand}, but {other_extent} in {other}")]
    Extents { stage: String, index: String, operand: String, extent: u64, other: String, other_extent: u64 },
    #[error("stage '{stage}': no input says how long index '{index}' of {operand} is; add sizes = {{ {index} = ... }}")]
    Unbound { stage: String, index: String, operand: String },
    #[error("stage '{stage}': {message}")]
    Shape { stage: String, message: String },
    #[error(
        "stage '{stage}' needs {needed_bytes} bytes on each rank, and its budget is {budget_bytes}; '{tensor}' is the \
         largest part with {tensor_bytes} bytes ({advice})"
    )]
    OverBudget {
        stage: String,
        needed_bytes: u64,
        budget_bytes: u64,
        tensor: String,
        tensor_bytes: u64,
        advice: &'static str,
    },
    #[error(
        "stage '{stage}': the operands of its smallest task take {needed_bytes} bytes of kernel memory, and its limit is \
         {limit_bytes}; '{tensor}' is the largest with {tensor_bytes} bytes"
    )]
    GuestMemory { stage: String, needed_bytes: u64, limit_bytes: u64, tensor: String, tensor_bytes: u64 },
}
