//! A safe wrapper of MPI's C interface: return codes become errors, and buffers stay in place while MPI uses them.
//!
//! Handles are opaque: pointers in Open MPI, integers in MPICH. rsmpi's own calls would drop the return codes.
#![expect(
    unsafe_code,
    reason = "the second unsafe door: C calls, and buffers that MPI reads and writes after the call returned"
)]

use std::ffi::{c_char, c_int, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};

use mpi::ffi;

use crate::fabric::error::FabricError;
use crate::fabric::limits::TAG_LIMIT;
use crate::fabric::payload::Payload;
use crate::topology::Rank;

/// A communicator. `Copy`, as the handle is.
#[derive(Clone, Copy, Debug)]
pub(super) struct MpiComm(ffi::MPI_Comm);

/// An MPI request.
#[derive(Debug)]
struct MpiRequest(ffi::MPI_Request);

impl MpiRequest {
    fn null() -> MpiRequest {
        // SAFETY: a constant, set before the program starts.
        MpiRequest(unsafe { ffi::RSMPI_REQUEST_NULL })
    }

    /// Whether the operation is complete; a completed request stays complete, since MPI nulls the handle.
    fn test(&mut self) -> Result<bool, FabricError> {
        let mut flag: c_int = 0;
        // SAFETY: the handle is of a request that was started, or null; the status may be ignored.
        check("MPI_Test", unsafe { ffi::MPI_Test(&mut self.0, &mut flag, ffi::RSMPI_STATUS_IGNORE) })?;
        Ok(flag != 0)
    }
}

/// A collective operation of the library itself in progress.
#[derive(Debug)]
pub(super) struct CollectiveRequest(MpiRequest);

impl CollectiveRequest {
    pub(super) fn done(&mut self) -> Result<bool, FabricError> {
        self.0.test()
    }
}

impl MpiComm {
    /// All ranks of this run. Its errors, and those of its duplicates, are returned from now on.
    pub(super) fn world() -> Result<MpiComm, FabricError> {
        // SAFETY: a constant handle, valid while MPI is initialised, which `Mpi` sees to.
        let world = unsafe { ffi::RSMPI_COMM_WORLD };
        // SAFETY: both handles are constants of the library.
        check("MPI_Comm_set_errhandler", unsafe { ffi::MPI_Comm_set_errhandler(world, ffi::RSMPI_ERRORS_RETURN) })?;
        Ok(MpiComm(world))
    }

    pub(super) fn rank(self) -> Result<Rank, FabricError> {
        let mut rank: c_int = 0;
        // SAFETY: a valid communicator and a place for the answer.
        check("MPI_Comm_rank", unsafe { ffi::MPI_Comm_rank(self.0, &mut rank) })?;
        Ok(rank.unsigned_abs())
    }

    pub(super) fn size(self) -> Result<u32, FabricError> {
        let mut size: c_int = 0;
        // SAFETY: a valid communicator and a place for the answer.
        check("MPI_Comm_size", unsafe { ffi::MPI_Comm_size(self.0, &mut size) })?;
        Ok(size.unsigned_abs())
    }

    /// The highest tag that a message may have: at least 32767, by the standard.
    pub(super) fn highest_tag(self) -> Result<u32, FabricError> {
        let mut value: *mut c_int = std::ptr::null_mut();
        let mut flag: c_int = 0;
        // SAFETY: MPI sets the pointer to an integer of its own, as the standard says of this attribute.
        check("MPI_Comm_get_attr", unsafe {
            ffi::MPI_Comm_get_attr(self.0, ffi::MPI_TAG_UB as c_int, (&raw mut value).cast::<c_void>(), &mut flag)
        })?;
        // SAFETY: set, and valid as long as MPI is initialised.
        let found = if flag != 0 { unsafe { value.as_ref() } } else { None };
        Ok(found.and_then(|tag| u32::try_from(*tag).ok()).unwrap_or(TAG_LIMIT - 1))
    }

    /// A second communicator over the same ranks, with separate messages. `wait` waits for its creation.
    pub(super) fn duplicate(
        self,
        wait: impl FnOnce(&mut CollectiveRequest) -> Result<(), FabricError>,
    ) -> Result<MpiComm, FabricError> {
        // MPI writes the handle when the request completes: if it never does, the place must outlive this function.
        // SAFETY: a constant, set before the program starts.
        let place = Box::leak(Box::new(unsafe { ffi::RSMPI_COMM_NULL }));
        let mut pending = CollectiveRequest(MpiRequest::null());
        // SAFETY: `place` lives forever.
        check("MPI_Comm_idup", unsafe { ffi::MPI_Comm_idup(self.0, place, &mut pending.0.0) })?;
        wait(&mut pending)?;
        Ok(MpiComm(*place))
    }

    pub(super) fn free(mut self) -> Result<(), FabricError> {
        // SAFETY: called on the duplicate, once, with no operation pending on it.
        check("MPI_Comm_free", unsafe { ffi::MPI_Comm_free(&mut self.0) })
    }

    pub(super) fn barrier(self) -> Result<CollectiveRequest, FabricError> {
        let mut pending = CollectiveRequest(MpiRequest::null());
        // SAFETY: a valid communicator; no buffer is involved.
        check("MPI_Ibarrier", unsafe { ffi::MPI_Ibarrier(self.0, &mut pending.0.0) })?;
        Ok(pending)
    }

    /// Starts a send. `bytes` has been checked to fit an `int`.
    pub(super) fn send(self, to: Rank, tag: u32, bytes: Payload) -> Result<SendRequest, FabricError> {
        let mut request = MpiRequest::null();
        // SAFETY: the bytes neither move nor change nor go before the request is complete: `SendRequest` keeps them,
        // and leaks them if it is dropped earlier.
        check("MPI_Isend", unsafe {
            ffi::MPI_Isend(
                bytes.as_ptr().cast::<c_void>(),
                bytes.len() as c_int,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag as c_int,
                self.0,
                &mut request.0,
            )
        })?;
        Ok(SendRequest { request, bytes: Some(bytes) })
    }

    /// Begins to receive the next message that matches, if one has arrived; `None` matches any.
    pub(super) fn receive(self, source: Option<Rank>, tag: Option<u32>) -> Result<Option<ReceiveRequest>, FabricError> {
        // SAFETY: constants, set before the program starts.
        let (any_source, any_tag, mut message) =
            unsafe { (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_ANY_TAG, ffi::RSMPI_MESSAGE_NULL) };
        let mut flag: c_int = 0;
        let mut status = MaybeUninit::<ffi::MPI_Status>::zeroed();
        // SAFETY: every pointer is to a place for an answer.
        check("MPI_Improbe", unsafe {
            ffi::MPI_Improbe(
                source.map_or(any_source, |rank| rank as c_int),
                tag.map_or(any_tag, |tag| tag as c_int),
                self.0,
                &mut flag,
                &mut message,
                status.as_mut_ptr(),
            )
        })?;
        if flag == 0 {
            return Ok(None);
        }
        // SAFETY: a plain C struct of integers, zeroed before MPI filled it.
        let status = unsafe { status.assume_init() };
        let mut count: c_int = 0;
        // SAFETY: the status of the matched message.
        check("MPI_Get_count", unsafe { ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut count) })?;
        let source = status.MPI_SOURCE.unsigned_abs();
        let length =
            usize::try_from(count).map_err(|_| FabricError::Malformed { sender: source, expected: "bytes" })?;
        let mut bytes: Vec<u8> = Vec::new();
        bytes.try_reserve_exact(length).map_err(|_| FabricError::Memory { sender: source, bytes: length as u64 })?;
        let mut bytes = ManuallyDrop::new(bytes);
        let mut request = MpiRequest::null();
        // SAFETY: the buffer has room for `count` bytes and stays until the request is complete: `ReceiveRequest` leaks
        // it if dropped earlier. Nothing reads it before.
        check("MPI_Imrecv", unsafe {
            ffi::MPI_Imrecv(
                bytes.as_mut_ptr().cast::<c_void>(),
                count,
                ffi::RSMPI_UINT8_T,
                &mut message,
                &mut request.0,
            )
        })?;
        Ok(Some(ReceiveRequest { source, tag: status.MPI_TAG.unsigned_abs(), request, bytes, length, done: false }))
    }
}

/// A send in progress. Dropping it while MPI may still read the bytes leaks them.
#[derive(Debug)]
pub(super) struct SendRequest {
    request: MpiRequest,
    bytes: Option<Payload>,
}

impl SendRequest {
    pub(super) fn done(&mut self) -> Result<bool, FabricError> {
        let done = self.bytes.is_none() || self.request.test()?;
        if done {
            self.bytes = None;
        }
        Ok(done)
    }
}

impl Drop for SendRequest {
    fn drop(&mut self) {
        std::mem::forget(self.bytes.take());
    }
}

/// A receive in progress. Dropping it while MPI may still write the bytes leaks them.
#[derive(Debug)]
pub(super) struct ReceiveRequest {
    pub(super) source: Rank,
    pub(super) tag: u32,
    request: MpiRequest,
    /// Of length 0 until `done`.
    bytes: ManuallyDrop<Vec<u8>>,
    length: usize,
    done: bool,
}

impl ReceiveRequest {
    pub(super) fn done(&mut self) -> Result<bool, FabricError> {
        if !self.done && self.request.test()? {
            // SAFETY: MPI has written `length` bytes into a buffer reserved for as many.
            unsafe { self.bytes.set_len(self.length) };
            self.done = true;
        }
        Ok(self.done)
    }

    /// The bytes of a receive that is done.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        assert!(self.done, "taken before it was complete");
        std::mem::take(&mut *self.bytes)
    }
}

impl Drop for ReceiveRequest {
    fn drop(&mut self) {
        if self.done {
            drop(std::mem::take(&mut *self.bytes));
        }
    }
}

/// Ends MPI for this process. To be called once, by the thread that initialised it.
pub(super) fn finalize() -> Result<(), FabricError> {
    // SAFETY: `Mpi::finalize`, the only caller, consumes the only fabric of the process and has let every send end;
    // receives still pending would be of messages nobody asked for, and their buffers outlive them (leaked).
    check("MPI_Finalize", unsafe { ffi::MPI_Finalize() })
}

/// The library's own description of itself; may be asked before MPI starts.
pub(super) fn library_version() -> Option<String> {
    // SAFETY: a constant, set before the program starts.
    let room = unsafe { ffi::RSMPI_MAX_LIBRARY_VERSION_STRING };
    let mut text = vec![0u8; usize::try_from(room).ok()?];
    let mut length: c_int = 0;
    // SAFETY: the buffer has the size that the standard asks for.
    let code = unsafe { ffi::MPI_Get_library_version(text.as_mut_ptr().cast::<c_char>(), &mut length) };
    if code != 0 {
        return None;
    }
    text.truncate(usize::try_from(length).ok()?);
    Some(String::from_utf8_lossy(&text).trim_end_matches('\0').to_owned())
}

/// `MPI_SUCCESS` is 0 by the standard.
fn check(call: &'static str, code: c_int) -> Result<(), FabricError> {
    if code == 0 {
        return Ok(());
    }
    // MPI_MAX_ERROR_STRING is 256 in Open MPI and 512 in MPICH; the standard wants a buffer that large.
    let mut text = [0u8; 4096];
    let mut length: c_int = 0;
    // SAFETY: the buffer is larger than any library's MPI_MAX_ERROR_STRING.
    let told = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast::<c_char>(), &mut length) };
    let message = match usize::try_from(length) {
        Ok(length) if told == 0 && length > 0 => String::from_utf8_lossy(&text[..length.min(text.len())]).into_owned(),
        _ => format!("error code {code}"),
    };
    Err(FabricError::Mpi { call, message })
}
