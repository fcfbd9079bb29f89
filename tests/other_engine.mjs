// Runs a kernel of one input and one output of the same two-dimensional shape under this engine (V8), with the kernel
// interface written by hand: node other_engine.mjs KERNEL.wasm EXPORT DTYPE ROWS COLUMNS IN.bin OUT.bin
import { readFileSync, writeFileSync } from "node:fs";

const [kernel, name, dtype, rows, columns, input, output] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(readFileSync(kernel), {});
const { memory } = instance.exports;
const bytes = readFileSync(input);
const align = (at) => Math.ceil(at / 64) * 64;
const views = memory.buffer.byteLength;
const from = align(views + 2 * 208);
const to = align(from + bytes.length);
memory.grow(Math.ceil((to + bytes.length - views) / 65536));
const data = new DataView(memory.buffer);
[from, to].forEach((address, index) => {
  const view = views + index * 208;
  const extents = [Number(rows), Number(columns)];
  data.setUint32(view, address, true);
  data.setUint32(view + 4, Number(dtype), true);
  data.setUint32(view + 8, 2, true);
  data.setUint32(view + 12, index, true);
  extents.forEach((extent, dim) => {
    data.setUint32(view + 16 + 4 * dim, extent, true);
    data.setInt32(view + 48 + 4 * dim, dim === 0 ? extents[1] : 1, true);
    data.setBigUint64(view + 144 + 8 * dim, BigInt(extent), true);
  });
});
new Uint8Array(memory.buffer).set(bytes, from);
const status = instance.exports[name](views, 2);
if (status !== 0) throw new Error(`status ${status}`);
writeFileSync(output, new Uint8Array(memory.buffer, to, bytes.length));
