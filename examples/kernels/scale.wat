;; y[n] = a[] * x[n], f64: views a, x, y. The interface by hand: a view has 208 bytes, its address stands at 0, its
;; dtype at 4 (f64 is 4), its rank at 8, its first extent at 16.
(module
  (memory (export "memory") 1)
  (func (export "scale") (param $views i32) (param $count i32) (result i32)
    (local $x i32) (local $y i32) (local $end i32) (local $a f64)
    (if (i32.ne (local.get $count) (i32.const 3)) (then (return (i32.const 1))))
    ;; dtype and rank of each view, read together: f64 of rank 0, 1 and 1.
    (if (i64.ne (i64.load offset=4 align=4 (local.get $views)) (i64.const 0x000000004)) (then (return (i32.const 2))))
    (if (i64.ne (i64.load offset=212 align=4 (local.get $views)) (i64.const 0x100000004)) (then (return (i32.const 2))))
    (if (i64.ne (i64.load offset=420 align=4 (local.get $views)) (i64.const 0x100000004)) (then (return (i32.const 2))))
    (local.set $a (f64.load (i32.load (local.get $views))))
    (local.set $x (i32.load offset=208 (local.get $views)))
    (local.set $y (i32.load offset=416 (local.get $views)))
    (local.set $end (i32.add (local.get $x) (i32.shl (i32.load offset=224 (local.get $views)) (i32.const 3))))
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $x) (local.get $end)))
        (f64.store (local.get $y) (f64.mul (local.get $a) (f64.load (local.get $x))))
        (local.set $x (i32.add (local.get $x) (i32.const 8)))
        (local.set $y (i32.add (local.get $y) (i32.const 8)))
        (br $next)))
    (i32.const 0)))
