//! `__rust_probestack`, which wasmer-vm 4.4 refers to and Rust's standard library no longer has.
//!
//! Code with a frame of more than a page calls it with the frame's bytes in `rax`: it touches each 4 KiB page below
//! `rsp`, so that an overflow meets the guard page, and returns with all registers as they were.
#![expect(unsafe_code, reason = "a symbol in assembly")]

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
std::arch::global_asm!(
    ".pushsection .text.__rust_probestack,\"ax\",@progbits",
    ".globl __rust_probestack",
    ".type __rust_probestack,@function",
    ".hidden __rust_probestack",
    "__rust_probestack:",
    "    push r11",
    "    push r10",
    "    mov r11, rax",
    "    mov r10, rsp",
    "2:  cmp r11, 0x1000",
    "    jb 3f",
    "    sub r10, 0x1000",
    "    test qword ptr [r10], rsp",
    "    sub r11, 0x1000",
    "    jmp 2b",
    "3:  sub r10, r11",
    "    test qword ptr [r10], rsp",
    "    pop r10",
    "    pop r11",
    "    ret",
    ".size __rust_probestack, . - __rust_probestack",
    ".popsection",
);
