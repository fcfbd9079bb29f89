use std::ops::Range;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use wasmer::{Global, Imports, Store, TypedFunction, Value};

use super::arena::{Arena, FENCE_BYTES, HOST_PAGE, OperandSlot, TilePlacement};
use super::code::Code;
use super::host_window::HostWindow;
use super::memory::{GuestMemory, WASM_PAGE};
use super::unwritten_outputs::{Suspicion, first_unwritten, looks_unwritten};
use crate::engine::code::Engine;
use crate::engine::error::{EngineError, KernelFault};
use crate::engine::kernel::Kernel;
use crate::engine::module_rewrite::{HOST_MODULE, HostState, Initial, MEMORY, global_name};
use crate::engine::operand::{Access, OperandSpec, View};
use crate::engine::shared_memory::SharedBytes;
use crate::engine::start_function::StartFunction;
use crate::engine::tier::Tier;

/// The pattern around tiles that the kernel writes; a change shows a write outside the tile.
const FENCE: u8 = 0xA5;
/// The initial content of outputs, and the content around inputs: NaN in floats, -1 in integers.
const FILL: u8 = 0xFF;

/// Stack size of a kernel. wasmer pools its stacks and keeps the first size, so it is set once.
const STACK_BYTES: usize = 8 << 20;
static STACK_SIZE: Once = Once::new();

/// A kernel instance of one worker: its memory, the slots of its operands, and the code of the current tier.
pub struct Instance {
    store: Store,
    kernel: Kernel,
    memory: GuestMemory,
    globals: Vec<Global>,
    arena: Arena,
    window: HostWindow,
    /// The memory that is mapped into the slots of shared operands.
    mapped: Vec<Option<Arc<SharedBytes>>>,
    limit_bytes: u64,
    function: TypedFunction<(i32, i32), i32>,
    tier: Tier,
    usable: bool,
    fill: u8,
    fence_bytes: u64,
    /// Set if unwritten outputs are faults.
    suspicion: Option<Suspicion>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Instance({} on {} code)", self.kernel.name(), self.tier.name())
    }
}

impl Instance {
    /// Makes an instance with room for `operands`; runs the module's start function and `_initialize`, once.
    /// `limit_bytes` bounds its whole linear memory, operands included.
    pub fn new(
        engine: &Engine,
        kernel: &Kernel,
        code: &Code,
        limit_bytes: u64,
        operands: &[OperandSpec],
    ) -> Result<Instance, EngineError> {
        Instance::watched(engine, kernel, code, limit_bytes, operands, |_| {})
    }

    /// Like [`Instance::new`]; calls `starts` before each function of the module that runs now, which may never return,
    /// and with `None` after it has returned.
    pub fn watched(
        engine: &Engine,
        kernel: &Kernel,
        code: &Code,
        limit_bytes: u64,
        operands: &[OperandSpec],
        mut starts: impl FnMut(Option<StartFunction>),
    ) -> Result<Instance, EngineError> {
        STACK_SIZE.call_once(|| wasmer_vm::set_stack_size(STACK_BYTES));
        let failed = |message: String| EngineError::Instantiate { name: kernel.name().to_owned(), message };
        let over = |needed_bytes, what: &str| EngineError::MemoryLimit {
            name: kernel.name().to_owned(),
            needed_bytes,
            what: what.to_owned(),
            limit_bytes,
        };
        let state = code.state();
        // The code of each tier has its own table.
        let tables = 2 * state.table_bytes;
        let limit_pages = (limit_bytes.saturating_sub(tables) / WASM_PAGE).min(65_536) as u32;
        if tables > limit_bytes || state.memory_pages > limit_pages {
            let needed = tables + u64::from(state.memory_pages) * WASM_PAGE;
            return Err(over(needed, "the module's own memory and its table of functions"));
        }
        let mut store = Store::new(engine.run().clone());
        let mut memory =
            GuestMemory::new(&mut store, state.memory_pages, state.max_pages, limit_pages).map_err(failed)?;
        write_data(&mut store, &mut memory, kernel, state)?;
        let globals = state.globals.iter().map(|initial| new_global(&mut store, *initial)).collect::<Vec<_>>();
        if state.leaves_first_page {
            // This comes before the start function, in which null pointers are wrong as well.
            memory.close(&store, 0..HOST_PAGE).map_err(|e| failed(e.to_string()))?;
        }
        let exports = instantiate(&mut store, code, &memory, &globals).map_err(failed)?;
        run_start_functions(&mut store, &exports, kernel, state, &mut starts)?;
        let start = memory.memory.view(&store).data_size();
        let arena = Arena::new(start, operands);
        let pages = (arena.end() - start).div_ceil(WASM_PAGE) as u32;
        memory.add(&mut store, pages).map_err(|_| over(tables + arena.end(), "its own and the operands of a task"))?;
        memory.take_refused_bytes();
        let window = memory.lay_out(&store, &arena);
        let window = window.map_err(|e| failed(format!("its memory cannot be laid out: {e}")))?;
        let function = kernel_function(&store, &exports, kernel).map_err(failed)?;
        Ok(Instance {
            store,
            kernel: kernel.clone(),
            memory,
            globals,
            arena,
            window,
            mapped: vec![None; operands.len()],
            limit_bytes,
            function,
            tier: code.tier(),
            usable: true,
            fill: FILL,
            fence_bytes: FENCE_BYTES,
            suspicion: None,
        })
    }

    /// Makes a call fail that leaves an element of an output unwritten, if that is detected.
    pub fn expect_all_written(&mut self) {
        self.suspicion = Some(Suspicion::default());
    }

    /// The tier of the code that the next call runs.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Makes `shared` the bytes of a shared operand, without a copy.
    pub fn map_operand(&mut self, operand: usize, shared: &Arc<SharedBytes>) -> Result<(), EngineError> {
        let failed = |message: String| EngineError::Instantiate { name: self.kernel.name().to_owned(), message };
        let fits = |slot: &&OperandSlot| slot.access == Access::Shared && shared.len() <= slot.max_bytes;
        let Some(slot) = self.arena.slots.get(operand).filter(fits) else {
            return Err(failed(format!("{} bytes do not fit operand {operand}", shared.len())));
        };
        if !self.mapped[operand].as_ref().is_some_and(|mapped| Arc::ptr_eq(mapped, shared)) {
            let mapped = self.memory.map(&self.store, slot, shared);
            mapped.map_err(|e| failed(format!("cannot map its inputs: {e}")))?;
            self.mapped[operand] = Some(shared.clone());
        }
        Ok(())
    }

    /// Moves the tiles of an operand within its slot, from the next call on. Has no effect on shared operands.
    pub fn place(&mut self, operand: usize, place: TilePlacement) {
        if let Some(slot) = self.arena.slots.get_mut(operand) {
            slot.place = place;
        }
    }

    /// From the next call on, `fill` is the initial content of outputs and the content around inputs, and the fences
    /// around a tile span its whole slot.
    pub fn watch_closely(&mut self, fill: u8) {
        (self.fill, self.fence_bytes) = (fill, u64::MAX);
        // This rebuilds the fences.
        self.arena.slots.iter_mut().for_each(|slot| slot.tile = None);
    }

    /// The buffer of an operand for the coming call; `None` if the bytes do not fit its slot, or if it is a mapped
    /// shared operand.
    pub fn operand_mut(&mut self, operand: usize, bytes: u64) -> Option<&mut [u8]> {
        if self.mapped.get(operand)?.is_some() {
            return None;
        }
        let tile = self.settle(operand, bytes)?;
        self.bytes_mut(operand, tile)
    }

    /// The content of an operand after the last call; `None` for a mapped operand.
    pub fn operand(&self, operand: usize, bytes: u64) -> Option<&[u8]> {
        let slot = self.arena.slots.get(operand).filter(|_| self.mapped[operand].is_none())?;
        self.bytes(slot, slot.tile_of(bytes)?)
    }

    /// Bytes of the slot of operand `operand`.
    fn bytes_mut(&mut self, operand: usize, addresses: Range<u64>) -> Option<&mut [u8]> {
        if self.arena.slots[operand].is_writable() {
            let bytes = addresses.end - addresses.start;
            self.memory.bytes_mut(&mut self.store, addresses.start, bytes)
        } else {
            self.window.bytes_mut(addresses)
        }
    }

    fn bytes(&self, slot: &OperandSlot, addresses: Range<u64>) -> Option<&[u8]> {
        if slot.is_writable() {
            self.memory.bytes(&self.store, addresses.start, addresses.end - addresses.start)
        } else {
            self.window.bytes(addresses)
        }
    }

    /// The addresses of an operand in the coming call. Clears the previous tile and builds the fences.
    fn settle(&mut self, operand: usize, bytes: u64) -> Option<Range<u64>> {
        let slot = self.arena.slots.get_mut(operand)?;
        let tile = slot.tile_of(bytes)?;
        if slot.tile.as_ref() == Some(&tile) || slot.access == Access::Shared {
            return Some(tile);
        }
        let left = slot.tile.replace(tile.clone());
        let fence = if slot.is_writable() { FENCE } else { self.fill };
        let [before, behind] = slot.fences(&tile, self.fence_bytes);
        for (part, value) in [(left.unwrap_or(0..0), 0), (before, fence), (behind, fence)] {
            if part.start < part.end {
                self.bytes_mut(operand, part)?.fill(value);
            }
        }
        Some(tile)
    }

    /// Makes `bytes` the content of a shared operand. Equal content is not written again: no kernel can have changed
    /// it.
    pub fn renew(&mut self, operand: usize, bytes: &[u8]) -> Result<(), EngineError> {
        if self.operand(operand, bytes.len() as u64).is_some_and(|there| there == bytes) {
            return Ok(());
        }
        let name = self.kernel.name().to_owned();
        let target = self.operand_mut(operand, bytes.len() as u64);
        let message = format!("{} bytes cannot become operand {operand}", bytes.len());
        target.ok_or(EngineError::Instantiate { name, message })?.copy_from_slice(bytes);
        Ok(())
    }

    /// Makes `code` current: the next call runs it, on the same memory and globals. Returns the time in nanoseconds.
    pub fn swap(&mut self, code: &Code) -> Result<u64, EngineError> {
        let started = Instant::now();
        let failed = |message| EngineError::Instantiate { name: self.kernel.name().to_owned(), message };
        let exports = instantiate(&mut self.store, code, &self.memory, &self.globals).map_err(failed)?;
        let function = kernel_function(&self.store, &exports, &self.kernel);
        self.function =
            function.map_err(|message| EngineError::Instantiate { name: self.kernel.name().to_owned(), message })?;
        self.tier = code.tier();
        Ok(started.elapsed().as_nanos() as u64)
    }

    /// Computes one tile. `views` are in the order of the operands; inputs have been written before. After an error
    /// the instance cannot be used again, since the content of its memory is undefined.
    pub fn call(&mut self, views: &[View]) -> Result<(), KernelFault> {
        if !self.usable {
            return Err(KernelFault::Unusable);
        }
        self.usable = false;
        assert_eq!(views.len(), self.arena.slots.len(), "one view per operand");
        for (operand, view) in views.iter().enumerate() {
            let Some(tile) = self.settle(operand, view.bytes()) else {
                panic!("{} bytes do not fit operand {operand}", view.bytes())
            };
            let is_output = self.arena.slots[operand].is_writable();
            let encoded = view.encode(tile.start, is_output);
            let at = self.arena.views.start + (operand * View::BYTES) as u64;
            let place = self.window.bytes_mut(at..at + View::BYTES as u64);
            place.into_iter().for_each(|place| place.copy_from_slice(&encoded));
        }
        self.fill_outputs(self.fill);
        let started = Instant::now();
        let mut fault = self.enter(views);
        if fault.is_none() && self.suspicion.is_some() {
            fault = self.unwritten(views, started.elapsed());
        }
        let refused = self.memory.take_refused_bytes();
        match (fault, refused) {
            (None, _) => {
                self.usable = true;
                Ok(())
            }
            (Some(fault), None) => Err(fault),
            (Some(fault), Some(wanted_bytes)) => {
                let outcome = fault.to_string();
                Err(KernelFault::MemoryLimit { wanted_bytes, limit_bytes: self.limit_bytes, outcome })
            }
        }
    }

    /// Fills the outputs, so that elements that a kernel does not write are the same in every run.
    fn fill_outputs(&mut self, fill: u8) {
        for operand in 0..self.arena.slots.len() {
            let slot = &self.arena.slots[operand];
            if slot.access == Access::Out
                && let Some(tile) = slot.tile.clone()
                && let Some(output) = self.bytes_mut(operand, tile)
            {
                output.fill(fill);
            }
        }
    }

    /// Runs the kernel on the prepared operands.
    fn enter(&mut self, views: &[View]) -> Option<KernelFault> {
        let result = self.function.call(&mut self.store, self.arena.views.start as i32, views.len() as i32);
        match result {
            Ok(0) => self.first_broken_fence(views),
            Ok(status) => Some(KernelFault::Status(status)),
            Err(error) => Some(fault(&error)),
        }
    }

    /// Checks whether the last call, which took this long, left an element of an output unwritten; a second call
    /// decides. `None` also if a second call would cost too much.
    fn unwritten(&mut self, views: &[View], took: Duration) -> Option<KernelFault> {
        let outputs = (0..views.len()).filter(|operand| self.arena.slots[*operand].access == Access::Out);
        let outputs: SmallVec<[usize; 4]> = outputs.collect();
        let (size, fill) = (|operand: usize| views[operand].dtype.size_bytes(), self.fill);
        let bytes = |this: &Instance, operand: usize| this.operand(operand, views[operand].bytes()).map(<[u8]>::to_vec);
        let looks = |operand: &&usize| {
            let output = self.operand(**operand, views[**operand].bytes());
            output.is_some_and(|output| looks_unwritten(output, size(**operand), fill))
        };
        outputs.iter().find(looks)?;
        if !self.suspicion.as_mut()?.is_worth_it(took) {
            return None;
        }
        let before: Vec<Option<Vec<u8>>> = outputs.iter().map(|operand| bytes(self, *operand)).collect();
        self.fill_outputs(!fill);
        if let Some(fault) = self.enter(views) {
            return Some(fault);
        }
        outputs.iter().zip(before).find_map(|(operand, before)| {
            let after = self.operand(*operand, views[*operand].bytes())?;
            let element = first_unwritten(&before?, after, size(*operand), fill)?;
            Some(KernelFault::Unwritten { operand: *operand, element })
        })
    }

    fn first_broken_fence(&self, views: &[View]) -> Option<KernelFault> {
        let outside = |operand: usize, view: &View| {
            let offset_bytes = self.wrote_outside(operand)?;
            Some(KernelFault::WroteOutside { operand, bytes: view.bytes(), offset_bytes })
        };
        views.iter().enumerate().find_map(|(operand, view)| outside(operand, view))
    }

    /// The offset from the tile's first byte of a byte outside the tile that the last call wrote: the first one after
    /// the tile, or else the last one before it. `None` for inputs, to which a write is a fault by itself.
    pub fn wrote_outside(&self, operand: usize) -> Option<i64> {
        let slot = self.arena.slots.get(operand).filter(|slot| slot.is_writable())?;
        let tile = slot.tile.clone()?;
        let [before, behind] = slot.fences(&tile, self.fence_bytes);
        let (behind_at, before_at) = (behind.start, before.start);
        let changed = |byte: &u8| *byte != FENCE;
        let last = || self.bytes(slot, before)?.iter().rposition(changed).map(|at| before_at + at as u64);
        let first = self.bytes(slot, behind)?.iter().position(changed).map(|at| behind_at + at as u64);
        first.or_else(last).map(|address| address as i64 - tile.start as i64)
    }
}

/// Copies the module's active data segments into its memory.
fn write_data(
    store: &mut Store,
    memory: &mut GuestMemory,
    kernel: &Kernel,
    state: &HostState,
) -> Result<(), EngineError> {
    for (address, data) in &state.data {
        let Some(target) = memory.bytes_mut(store, u64::from(*address), data.len() as u64) else {
            let what = format!("the data of {} bytes at address {address}", data.len());
            let memory_bytes = u64::from(state.memory_pages) * WASM_PAGE;
            return Err(EngineError::DataOutOfBounds { name: kernel.name().to_owned(), what, memory_bytes });
        };
        target.copy_from_slice(data);
    }
    Ok(())
}

/// Runs the module's start function and `_initialize`, if it has them; `observe` is called before each and after it.
fn run_start_functions(
    store: &mut Store,
    exports: &wasmer::Instance,
    kernel: &Kernel,
    state: &HostState,
    observe: &mut impl FnMut(Option<StartFunction>),
) -> Result<(), EngineError> {
    for start in [StartFunction::Start, StartFunction::Initialize] {
        let exists = start == StartFunction::Initialize || state.has_start;
        if let Ok(function) = exports.exports.get_typed_function::<(), ()>(store, start.export())
            && exists
        {
            observe(Some(start));
            let result = function.call(store);
            observe(None);
            result.map_err(|error| EngineError::Start {
                name: kernel.name().to_owned(),
                function: start,
                source: Box::new(fault(&error)),
            })?;
        }
    }
    Ok(())
}

pub(super) fn new_global(store: &mut Store, initial: Initial) -> Global {
    let value = match initial {
        Initial::I32(value) => Value::I32(value),
        Initial::I64(value) => Value::I64(value),
        Initial::F32(bits) => Value::F32(f32::from_bits(bits)),
        Initial::F64(bits) => Value::F64(f64::from_bits(bits)),
        Initial::V128(bits) => Value::V128(bits),
    };
    Global::new_mut(store, value)
}

pub(super) fn instantiate(
    store: &mut Store,
    code: &Code,
    memory: &GuestMemory,
    globals: &[Global],
) -> Result<wasmer::Instance, String> {
    let mut imports = Imports::new();
    imports.define(HOST_MODULE, MEMORY, memory.memory.clone());
    for (index, global) in globals.iter().enumerate() {
        imports.define(HOST_MODULE, &global_name(index), global.clone());
    }
    wasmer::Instance::new(store, code.module(), &imports).map_err(|e| e.to_string())
}

fn kernel_function(
    store: &Store,
    exports: &wasmer::Instance,
    kernel: &Kernel,
) -> Result<TypedFunction<(i32, i32), i32>, String> {
    exports.exports.get_typed_function(store, kernel.export()).map_err(|e| e.to_string())
}

fn fault(error: &wasmer::RuntimeError) -> KernelFault {
    use wasmer_vm::TrapCode;
    match error.clone().to_trap() {
        Some(TrapCode::StackOverflow) => KernelFault::StackOverflow { stack_bytes: STACK_BYTES },
        Some(TrapCode::HeapAccessOutOfBounds) => KernelFault::OutOfBounds,
        _ => KernelFault::Trap { message: error.message() },
    }
}
