use std::sync::{Arc, Once};
use std::time::Instant;

use wasmer::{Global, Imports, Store, TypedFunction, Value};

use super::code::Code;
use super::memory::{Arena, GuestMemory, Slot, WASM_PAGE};
use super::rewrite::{HOST_MODULE, Initial, MEMORY, START, global_name};
use super::{Access, Engine, EngineError, Kernel, KernelFault, OperandSpec, SharedBytes, Tier, View};

/// Stack of a kernel. wasmer keeps its stacks in a pool that takes the first size for good, so it is set once.
const STACK_BYTES: usize = 8 << 20;
static STACK_SIZE: Once = Once::new();

/// One worker's running form of a kernel: its memory, its operands' places in it, and the code of the current tier.
pub struct Instance {
    store: Store,
    kernel: Kernel,
    memory: GuestMemory,
    globals: Vec<Global>,
    arena: Arena,
    /// What is mapped into the slots of shared operands.
    mapped: Vec<Option<Arc<SharedBytes>>>,
    limit_bytes: u64,
    function: TypedFunction<(i32, i32), i32>,
    tier: Tier,
    usable: bool,
    sealed: bool,
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
        STACK_SIZE.call_once(|| wasmer_vm::set_stack_size(STACK_BYTES));
        let failed = |message: String| EngineError::Instantiate { name: kernel.name().to_owned(), message };
        let over = |needed_bytes, what: &str| EngineError::MemoryLimit {
            name: kernel.name().to_owned(),
            needed_bytes,
            what: what.to_owned(),
            limit_bytes,
        };
        let state = code.state();
        // The code of each tier has a table of its own.
        let tables = 2 * state.table_bytes;
        let limit_pages = (limit_bytes.saturating_sub(tables) / WASM_PAGE).min(65_536) as u32;
        if tables > limit_bytes || state.memory_pages > limit_pages {
            let needed = tables + u64::from(state.memory_pages) * WASM_PAGE;
            return Err(over(needed, "the module's own memory and its table of functions"));
        }
        let mut store = Store::new(engine.run().clone());
        let mut memory =
            GuestMemory::new(&mut store, state.memory_pages, state.max_pages, limit_pages).map_err(failed)?;
        for (address, data) in &state.data {
            let Some(target) = memory.bytes_mut(&mut store, u64::from(*address), data.len() as u64) else {
                let what = format!("the data of {} bytes at address {address}", data.len());
                let memory_bytes = u64::from(state.memory_pages) * WASM_PAGE;
                return Err(EngineError::DataOutOfBounds { name: kernel.name().to_owned(), what, memory_bytes });
            };
            target.copy_from_slice(data);
        }
        let globals = state.globals.iter().map(|initial| new_global(&mut store, *initial)).collect::<Vec<_>>();
        let exports = instantiate(&mut store, code, &memory, &globals).map_err(failed)?;
        for name in [state.has_start.then_some(START), Some("_initialize")].into_iter().flatten() {
            if let Ok(function) = exports.exports.get_typed_function::<(), ()>(&store, name) {
                function.call(&mut store).map_err(|e| failed(format!("{name}: {}", e.message())))?;
            }
        }
        let start = memory.memory.view(&store).data_size();
        let arena = Arena::new(start, operands);
        let pages = (arena.end() - start).div_ceil(WASM_PAGE) as u32;
        memory.add(&mut store, pages).map_err(|_| over(tables + arena.end(), "its own and the operands of a task"))?;
        memory.take_refused_bytes();
        memory.protect_guards(&store, &arena).map_err(|e| failed(e.to_string()))?;
        let function = kernel_function(&store, &exports, kernel).map_err(failed)?;
        let tier = code.tier();
        let kernel = kernel.clone();
        let (usable, sealed) = (true, false);
        let mapped = vec![None; operands.len()];
        Ok(Instance { store, kernel, memory, globals, arena, mapped, limit_bytes, function, tier, usable, sealed })
    }

    /// The tier of the code that the next call runs.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Makes `shared` the bytes of a shared operand, without a copy.
    pub fn map_operand(&mut self, operand: usize, shared: &Arc<SharedBytes>) -> Result<(), EngineError> {
        let failed = |message: String| EngineError::Instantiate { name: self.kernel.name().to_owned(), message };
        let fits = |slot: &&Slot| slot.access == Access::Shared && shared.len() <= slot.max_bytes;
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

    /// Room for the bytes of operand `operand` in the coming call; `None` if they do not fit its slot, or if it is a
    /// shared operand and mapped or already sealed.
    pub fn operand_mut(&mut self, operand: usize, bytes: u64) -> Option<&mut [u8]> {
        let slot = *self.arena.slots.get(operand)?;
        let closed = slot.access == Access::Shared && (self.sealed || self.mapped[operand].is_some());
        if bytes > slot.max_bytes || closed {
            return None;
        }
        self.memory.bytes_mut(&mut self.store, slot.address, bytes)
    }

    /// What the last call left in operand `operand`.
    pub fn operand(&self, operand: usize, bytes: u64) -> Option<&[u8]> {
        let slot = self.arena.slots.get(operand).filter(|slot| bytes <= slot.max_bytes)?;
        self.memory.bytes(&self.store, slot.address, bytes)
    }

    /// Makes the shared operands read-only, after they were written.
    pub fn seal(&mut self) -> Result<(), EngineError> {
        self.sealed = true;
        for slot in self.arena.slots.iter().filter(|slot| slot.access == Access::Shared) {
            self.memory.seal(&self.store, slot).map_err(|e| self.unprotected(&e))?;
        }
        Ok(())
    }

    /// Makes `bytes` the content of a shared operand that is sealed, for the next run of a stage. What is there already
    /// costs nothing: no kernel can have changed it.
    pub fn renew(&mut self, operand: usize, bytes: &[u8]) -> Result<(), EngineError> {
        if self.operand(operand, bytes.len() as u64).is_none_or(|there| there == bytes) {
            return Ok(());
        }
        let slot = self.arena.slots[operand];
        self.memory.unseal(&self.store, &slot).map_err(|e| self.unprotected(&e))?;
        if let Some(target) = self.memory.bytes_mut(&mut self.store, slot.address, bytes.len() as u64) {
            target.copy_from_slice(bytes);
        }
        self.memory.seal(&self.store, &slot).map_err(|e| self.unprotected(&e))
    }

    fn unprotected(&self, error: &std::io::Error) -> EngineError {
        let message = format!("cannot protect its inputs: {error}");
        EngineError::Instantiate { name: self.kernel.name().to_owned(), message }
    }

    /// Makes `code` current: the next call runs it, on the same memory and globals. Returns what it took in
    /// nanoseconds.
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
    /// the instance is of no further use: what is in its memory is not to be trusted.
    pub fn call(&mut self, views: &[View]) -> Result<(), KernelFault> {
        if !self.usable {
            return Err(KernelFault::Unusable);
        }
        self.usable = false;
        assert_eq!(views.len(), self.arena.slots.len(), "one view per operand");
        let mut encoded = Vec::with_capacity(views.len() * View::BYTES);
        for (view, slot) in views.iter().zip(&self.arena.slots) {
            encoded.extend_from_slice(&view.encode(slot.address, slot.access == Access::Out));
            self.memory.set_fences(&mut self.store, slot, view.bytes());
        }
        if let Some(target) = self.memory.bytes_mut(&mut self.store, self.arena.views, encoded.len() as u64) {
            target.copy_from_slice(&encoded);
        }
        let result = self.function.call(&mut self.store, self.arena.views as i32, views.len() as i32);
        let fault = match result {
            Ok(0) => self.first_broken_fence(views),
            Ok(status) => Some(KernelFault::Status(status)),
            Err(error) => Some(fault(&error)),
        };
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

    fn first_broken_fence(&self, views: &[View]) -> Option<KernelFault> {
        let slots = self.arena.slots.iter().zip(views).enumerate();
        let mut broken = slots.filter(|(_, (slot, view))| !self.memory.fences_intact(&self.store, slot, view.bytes()));
        broken.next().map(|(operand, (_, view))| KernelFault::WroteOutside { operand, bytes: view.bytes() })
    }
}

fn new_global(store: &mut Store, initial: Initial) -> Global {
    let value = match initial {
        Initial::I32(value) => Value::I32(value),
        Initial::I64(value) => Value::I64(value),
        Initial::F32(bits) => Value::F32(f32::from_bits(bits)),
        Initial::F64(bits) => Value::F64(f64::from_bits(bits)),
        Initial::V128(bits) => Value::V128(bits),
    };
    Global::new_mut(store, value)
}

fn instantiate(
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
