//! y[n] = a[] * x[n] + b[], f64: the kernel interface in Rust, without the standard library.
#![no_std]

#[repr(C)]
pub struct View {
    data: u32,
    dtype: u32,
    rank: u32,
    flags: u32,
    extent: [u32; 8],
    stride: [i32; 8],
    origin: [u64; 8],
    shape: [u64; 8],
}

const F64: u32 = 4;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

/// # Safety
/// `views` must point to `count` views, as the host sees to.
#[no_mangle]
pub unsafe extern "C" fn axpb(views: *const View, count: u32) -> i32 {
    let views = core::slice::from_raw_parts(views, count as usize);
    let (a, x, b, y) = match views {
        [a, x, b, y] => (a, x, b, y),
        _ => return 1,
    };
    let rank = |view: &View, rank| view.dtype == F64 && view.rank == rank;
    if !(rank(a, 0) && rank(x, 1) && rank(b, 0) && rank(y, 1)) {
        return 2;
    }
    let (a, b) = (*(a.data as *const f64), *(b.data as *const f64));
    let x = core::slice::from_raw_parts(x.data as *const f64, x.extent[0] as usize);
    let y = core::slice::from_raw_parts_mut(y.data as *mut f64, y.extent[0] as usize);
    for (y, x) in y.iter_mut().zip(x) {
        *y = a * x + b;
    }
    0
}
