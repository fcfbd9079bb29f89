//! Golden tests of plans and errors as the user sees them.

use super::tests::{
    KNN, Layouts, MATMUL, TWO, job, knn_layouts, layout, layouts, machine, matmul_layouts, two_layouts,
};
use super::*;
use crate::tensor::Dtype;
use insta::assert_snapshot;

fn rendered(text: &str, layouts: &Layouts, ranks: u32) -> String {
    render(&plan(&job(text), layouts, &machine(ranks)).unwrap())
}

#[test]
fn plans_of_knn() {
    assert_snapshot!(rendered(KNN, &knn_layouts(), 1), @"
    plan of digits-knn: 1 rank (2 per node) of 4 threads, 4.0 GiB per rank

    stage classify: map
      indices  q=1000 (split), d=784, n=60000
      inputs   test[q,d]     u8   [1000, 784]   765.6 KiB  split      file
               train[n,d]    u8   [60000, 784]  44.9 MiB   broadcast  file, chunk [1000, 784]
               k[]           u32  []            4 B        broadcast  inline
      outputs  predicted[q]  u8   [1000]        1000 B     split      created, chunk [256], deflate 4
      units    4 of q=256; 4 per rank
      blocks   4 of at most q=256 (196.2 KiB)
      tasks    4 or more: blocks are cut while running, by measured time
      bytes    read 45.6 MiB, moved 0 B, written 1000 B
      memory   peak 48.3 MiB per rank: 44.9 MiB broadcast, 448.0 KiB arena per thread

    total: read 45.6 MiB, moved 0 B, written 1000 B; peak 48.3 MiB per rank
    ");
    assert_snapshot!(rendered(KNN, &knn_layouts(), 2), @"
    plan of digits-knn: 2 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage classify: map
      indices  q=1000 (split), d=784, n=60000
      inputs   test[q,d]     u8   [1000, 784]   765.6 KiB  split      file
               train[n,d]    u8   [60000, 784]  44.9 MiB   broadcast  file, chunk [1000, 784]
               k[]           u32  []            4 B        broadcast  inline
      outputs  predicted[q]  u8   [1000]        1000 B     split      created, chunk [256], deflate 4
      units    4 of q=256; 2 per rank
      blocks   4 of at most q=256 (196.2 KiB)
      tasks    4 or more: blocks are cut while running, by measured time
      bytes    read 45.6 MiB, moved 0 B, written 1000 B
      memory   peak 49.4 MiB per rank: 44.9 MiB broadcast, 448.0 KiB arena per thread

    total: read 45.6 MiB, moved 0 B, written 1000 B; peak 49.4 MiB per rank
    ");
    assert_snapshot!(rendered(KNN, &knn_layouts(), 3), @"
    plan of digits-knn: 3 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage classify: map
      indices  q=1000 (split), d=784, n=60000
      inputs   test[q,d]     u8   [1000, 784]   765.6 KiB  split      file
               train[n,d]    u8   [60000, 784]  44.9 MiB   broadcast  file, chunk [1000, 784]
               k[]           u32  []            4 B        broadcast  inline
      outputs  predicted[q]  u8   [1000]        1000 B     split      created, chunk [256], deflate 4
      units    4 of q=256; 1 to 2 per rank
      blocks   4 of at most q=256 (196.2 KiB)
      tasks    4 or more: blocks are cut while running, by measured time
      bytes    read 45.6 MiB, moved 44.9 MiB, written 1000 B
      memory   peak 49.4 MiB per rank: 44.9 MiB broadcast, 448.0 KiB arena per thread

    total: read 45.6 MiB, moved 44.9 MiB, written 1000 B; peak 49.4 MiB per rank
    ");
    assert_snapshot!(rendered(KNN, &knn_layouts(), 7), @"
    plan of digits-knn: 7 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage classify: map
      indices  q=1000 (split), d=784, n=60000
      inputs   test[q,d]     u8   [1000, 784]   765.6 KiB  split      file
               train[n,d]    u8   [60000, 784]  44.9 MiB   broadcast  file, chunk [1000, 784]
               k[]           u32  []            4 B        broadcast  inline
      outputs  predicted[q]  u8   [1000]        1000 B     split      created, chunk [256], deflate 4
      units    4 of q=256; 0 to 1 per rank
      blocks   4 of at most q=256 (196.2 KiB)
      tasks    4 or more: blocks are cut while running, by measured time
      bytes    read 45.6 MiB, moved 134.6 MiB, written 1000 B
      memory   peak 49.4 MiB per rank: 44.9 MiB broadcast, 448.0 KiB arena per thread
      note     3 of 7 ranks are idle: there are 4 units of q=256

    total: read 45.6 MiB, moved 134.6 MiB, written 1000 B; peak 49.4 MiB per rank
    ");
}

#[test]
fn plans_of_two_stages() {
    assert_snapshot!(rendered(TWO, &two_layouts(), 1), @"
    plan of blur-and-sum: 1 rank (2 per node) of 4 threads, 4.0 GiB per rank

    stage stage1: map
      indices  y=2000 (split), x=3000 (split), c=3 (split)
      inputs   image[y,x,c]  u16  [2000, 3000, 3]  34.3 MiB  split  file, chunk [256, 256, 3]
               gain[c]       f32  [3]              12 B      split  file
      outputs  tmp[y,x,c]    f32  [2000, 3000, 3]  68.7 MiB  split  scratch, in memory
      units    96 of y=256,x=256,c=3; 96 per rank
      blocks   32 of at most y=256,x=768,c=3 (3.4 MiB)
      tasks    32 or more: blocks are cut while running, by measured time
      bytes    read 34.3 MiB, moved 0 B, written 0 B
      memory   peak 120.6 MiB per rank: 0 B broadcast, 3.6 MiB arena per thread

    stage stage2: map
      indices  y=2000, x=3000, c=3
      inputs   tmp[y,x,c]  f32  [2000, 3000, 3]  68.7 MiB  split  scratch, in memory
      outputs  sum[]       f64  []               8 B       split  created
      units    1 of all; 1 per rank
      blocks   1 of at most all (68.7 MiB)
      tasks    1, the whole stage
      bytes    read 0 B, moved 0 B, written 8 B
      memory   peak 566.7 MiB per rank: 0 B broadcast, 68.9 MiB arena per thread
      note     no index is cut: everything is one task on rank 0

    total: read 34.3 MiB, moved 0 B, written 8 B; peak 566.7 MiB per rank
    ");
    assert_snapshot!(rendered(TWO, &two_layouts(), 2), @"
    plan of blur-and-sum: 2 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage stage1: map
      indices  y=2000 (split), x=3000 (split), c=3 (split)
      inputs   image[y,x,c]  u16  [2000, 3000, 3]  34.3 MiB  split  file, chunk [256, 256, 3]
               gain[c]       f32  [3]              12 B      split  file
      outputs  tmp[y,x,c]    f32  [2000, 3000, 3]  68.7 MiB  split  scratch, in memory
      units    96 of y=256,x=256,c=3; 48 per rank
      blocks   32 of at most y=256,x=768,c=3 (3.4 MiB)
      tasks    32 or more: blocks are cut while running, by measured time
      bytes    read 34.3 MiB, moved 0 B, written 0 B
      memory   peak 97.9 MiB per rank: 0 B broadcast, 3.6 MiB arena per thread

    stage stage2: map
      indices  y=2000, x=3000, c=3
      inputs   tmp[y,x,c]  f32  [2000, 3000, 3]  68.7 MiB  split  scratch, in memory
      outputs  sum[]       f64  []               8 B       split  created
      units    1 of all; 0 to 1 per rank
      blocks   1 of at most all (68.7 MiB)
      tasks    1, the whole stage
      bytes    read 0 B, moved 33.5 MiB, written 8 B
      memory   peak 935.8 MiB per rank: 0 B broadcast, 68.9 MiB arena per thread
      note     no index is cut: everything is one task on rank 0

    total: read 34.3 MiB, moved 33.5 MiB, written 8 B; peak 935.8 MiB per rank
    ");
    assert_snapshot!(rendered(TWO, &two_layouts(), 3), @"
    plan of blur-and-sum: 3 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage stage1: map
      indices  y=2000 (split), x=3000 (split), c=3 (split)
      inputs   image[y,x,c]  u16  [2000, 3000, 3]  34.3 MiB  split  file, chunk [256, 256, 3]
               gain[c]       f32  [3]              12 B      split  file
      outputs  tmp[y,x,c]    f32  [2000, 3000, 3]  68.7 MiB  split  scratch, in memory
      units    96 of y=256,x=256,c=3; 32 per rank
      blocks   34 of at most y=256,x=768,c=3 (3.4 MiB)
      tasks    34 or more: blocks are cut while running, by measured time
      bytes    read 34.3 MiB, moved 0 B, written 0 B
      memory   peak 83.6 MiB per rank: 0 B broadcast, 3.6 MiB arena per thread

    stage stage2: map
      indices  y=2000, x=3000, c=3
      inputs   tmp[y,x,c]  f32  [2000, 3000, 3]  68.7 MiB  split  scratch, in memory
      outputs  sum[]       f64  []               8 B       split  created
      units    1 of all; 0 to 1 per rank
      blocks   1 of at most all (68.7 MiB)
      tasks    1, the whole stage
      bytes    read 0 B, moved 45.1 MiB, written 8 B
      memory   peak 921.5 MiB per rank: 0 B broadcast, 68.9 MiB arena per thread
      note     no index is cut: everything is one task on rank 0

    total: read 34.3 MiB, moved 45.1 MiB, written 8 B; peak 921.5 MiB per rank
    ");
    assert_snapshot!(rendered(TWO, &two_layouts(), 7), @"
    plan of blur-and-sum: 7 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage stage1: map
      indices  y=2000 (split), x=3000 (split), c=3 (split)
      inputs   image[y,x,c]  u16  [2000, 3000, 3]  34.3 MiB  split  file, chunk [256, 256, 3]
               gain[c]       f32  [3]              12 B      split  file
      outputs  tmp[y,x,c]    f32  [2000, 3000, 3]  68.7 MiB  split  scratch, in memory
      units    96 of y=256,x=256,c=3; 13 to 14 per rank
      blocks   96 of at most y=256,x=256,c=3 (1.1 MiB)
      tasks    96 or more: blocks are cut while running, by measured time
      bytes    read 34.3 MiB, moved 0 B, written 0 B
      memory   peak 31.3 MiB per rank: 0 B broadcast, 1.4 MiB arena per thread

    stage stage2: map
      indices  y=2000, x=3000, c=3
      inputs   tmp[y,x,c]  f32  [2000, 3000, 3]  68.7 MiB  split  scratch, in memory
      outputs  sum[]       f64  []               8 B       split  created
      units    1 of all; 0 to 1 per rank
      blocks   1 of at most all (68.7 MiB)
      tasks    1, the whole stage
      bytes    read 0 B, moved 58.4 MiB, written 8 B
      memory   peak 905.1 MiB per rank: 0 B broadcast, 68.9 MiB arena per thread
      note     no index is cut: everything is one task on rank 0

    total: read 34.3 MiB, moved 58.4 MiB, written 8 B; peak 905.1 MiB per rank
    ");
}

#[test]
fn plans_of_matmul() {
    let layouts = matmul_layouts(4096);
    assert_snapshot!(rendered(MATMUL, &layouts, 1), @"
    plan of matmul: 1 rank (2 per node) of 4 threads, 4.0 GiB per rank

    stage stage1: map
      indices  i=4096 (split), k=4096, j=4096 (split)
      inputs   a[i,k]  f32  [4096, 4096]  64.0 MiB  split  file
               b[k,j]  f32  [4096, 4096]  64.0 MiB  split  file
      outputs  c[i,j]  f32  [4096, 4096]  64.0 MiB  split  created
      units    262144 of i=64,j=1; 262144 per rank
      blocks   1408 of at most i=64,j=189 (4.0 MiB)
      tasks    1408 or more: blocks are cut while running, by measured time
      bytes    read 5.4 GiB, moved 0 B, written 64.0 MiB
      memory   peak 41.0 MiB per rank: 0 B broadcast, 4.2 MiB arena per thread
      note     a is read 22 times: it lacks a split index
      note     b is read 64 times: it lacks a split index

    total: read 5.4 GiB, moved 0 B, written 64.0 MiB; peak 41.0 MiB per rank
    ");
    assert_snapshot!(rendered(MATMUL, &layouts, 2), @"
    plan of matmul: 2 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage stage1: map
      indices  i=4096 (split), k=4096, j=4096 (split)
      inputs   a[i,k]  f32  [4096, 4096]  64.0 MiB  split  file
               b[k,j]  f32  [4096, 4096]  64.0 MiB  split  file
      outputs  c[i,j]  f32  [4096, 4096]  64.0 MiB  split  created
      units    262144 of i=64,j=1; 131072 per rank
      blocks   1408 of at most i=64,j=189 (4.0 MiB)
      tasks    1408 or more: blocks are cut while running, by measured time
      bytes    read 5.4 GiB, moved 0 B, written 64.0 MiB
      memory   peak 65.0 MiB per rank: 0 B broadcast, 4.2 MiB arena per thread
      note     a is read 22 times: it lacks a split index
      note     b is read 64 times: it lacks a split index

    total: read 5.4 GiB, moved 0 B, written 64.0 MiB; peak 65.0 MiB per rank
    ");
    assert_snapshot!(rendered(MATMUL, &layouts, 3), @"
    plan of matmul: 3 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage stage1: map
      indices  i=4096 (split), k=4096, j=4096 (split)
      inputs   a[i,k]  f32  [4096, 4096]  64.0 MiB  split  file
               b[k,j]  f32  [4096, 4096]  64.0 MiB  split  file
      outputs  c[i,j]  f32  [4096, 4096]  64.0 MiB  split  created
      units    262144 of i=64,j=1; 87381 to 87382 per rank
      blocks   1410 of at most i=64,j=189 (4.0 MiB)
      tasks    1410 or more: blocks are cut while running, by measured time
      bytes    read 5.4 GiB, moved 0 B, written 64.0 MiB
      memory   peak 65.0 MiB per rank: 0 B broadcast, 4.2 MiB arena per thread
      note     a is read 22 times: it lacks a split index
      note     b is read 64 times: it lacks a split index

    total: read 5.4 GiB, moved 0 B, written 64.0 MiB; peak 65.0 MiB per rank
    ");
    assert_snapshot!(rendered(MATMUL, &layouts, 7), @"
    plan of matmul: 7 ranks (2 per node) of 4 threads, 4.0 GiB per rank

    stage stage1: map
      indices  i=4096 (split), k=4096, j=4096 (split)
      inputs   a[i,k]  f32  [4096, 4096]  64.0 MiB  split  file
               b[k,j]  f32  [4096, 4096]  64.0 MiB  split  file
      outputs  c[i,j]  f32  [4096, 4096]  64.0 MiB  split  created
      units    262144 of i=64,j=1; 37449 to 37450 per rank
      blocks   1414 of at most i=64,j=189 (4.0 MiB)
      tasks    1414 or more: blocks are cut while running, by measured time
      bytes    read 5.4 GiB, moved 0 B, written 64.0 MiB
      memory   peak 65.0 MiB per rank: 0 B broadcast, 4.2 MiB arena per thread
      note     a is read 22 times: it lacks a split index
      note     b is read 64 times: it lacks a split index

    total: read 5.4 GiB, moved 0 B, written 64.0 MiB; peak 65.0 MiB per rank
    ");
}

/// Returns the error of planning `KNN` with `from` replaced by `to`, and with other layouts where given.
fn fault(from: &str, to: &str, other: impl IntoIterator<Item = (&'static str, Layout)>, machine: &Machine) -> String {
    assert!(KNN.contains(from), "{from}");
    let mut layouts = knn_layouts();
    layouts.extend(self::layouts(other));
    let error = plan(&job(&KNN.replacen(from, to, 1)), &layouts, machine).expect_err(to);
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}\ncaused by: {source}"),
        None => error.to_string(),
    }
}

#[test]
fn data_that_do_not_fit_the_notation() {
    let m = machine(2);
    let test = |shape: &[u64]| [("test", layout(Dtype::U8, shape, None))];
    assert_snapshot!(fault("", "", test(&[1000, 768]), &m), @r#"
    jobs/test.toml:11:31: index 'd' is 784 in train[n,d] (dimension 1 of [60000, 784]), but 768 in test[q,d] (dimension 1 of [1000, 768])
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                               ^
    "#);
    assert_snapshot!(fault("", "", test(&[1000, 28, 28]), &m), @r#"
    jobs/test.toml:11:12: test[q,d] has 2 indices, but tensor 'test' has 3 dimensions: [1000, 28, 28]
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |            ^^^^
    "#);
    assert_snapshot!(fault("k[] ->", "k[z] ->", [], &m), @r#"
    jobs/test.toml:11:35: k[z] has 1 index, but tensor 'k' has 0 dimensions: []
       |
    11 | compute = "test[q,d], train[n,d], k[z] -> predicted[q]"
       |                                   ^
    "#);
    assert_snapshot!(fault("limits =", "sizes = { q = 10 }\nlimits =", [], &m), @r#"
    jobs/test.toml:11:17: index 'q' is 10 in 'sizes', but 1000 in test[q,d] (dimension 0 of [1000, 784])
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                 ^
    help: remove 'q' from 'sizes': the data give it
    "#);
    assert_snapshot!(fault("chunk = [256]", "chunk = [16, 16]", [], &m), @r#"
    jobs/test.toml:11:42: predicted[q] has 1 index, but 'chunk' of tensor 'predicted' has 2 extents: [16, 16]
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                                          ^^^^^^^^^
    "#);
    assert_snapshot!(fault("predicted[q]\"", "predicted[q,z]\"\nsizes = { z = 9223372036854775807 }", [], &m), @r#"
    jobs/test.toml:11:42: output predicted[q,z] cannot exist
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q,z]"
       |                                          ^^^^^^^^^
    caused by: shape [1000, 9223372036854775807] has too many elements
    "#);
    let unknown = plan(&job(KNN), &Layouts::new(), &m).unwrap_err();
    assert_snapshot!(unknown.to_string(), @r#"
    jobs/test.toml:11:12: the layout of tensor 'test' is not known
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |            ^^^^
    "#);
    assert!(unknown.excerpt().is_some());
    let nobody = Machine { ranks: 0, ..m };
    assert_snapshot!(plan(&job(KNN), &knn_layouts(), &nobody).unwrap_err().to_string(), @"a plan needs at least one rank and one thread, not 0 ranks and 4 threads");
}

#[test]
fn what_does_not_fit_in_memory() {
    let small = |memory_bytes| Machine { memory_bytes, ..machine(2) };
    assert_snapshot!(fault("", "", [], &small(49 << 20)), @r#"
    jobs/test.toml:11:23: stage 'classify' needs 49.4 MiB on every rank, but the budget is 49.0 MiB; most of it is tensor 'train' (u8 [60000, 784], whole), 44.9 MiB
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                       ^^^^^
    help: --threads 2 fits, or a budget of 50MiB
    "#);
    assert_snapshot!(fault("", "", [], &small(40 << 20)), @r#"
    jobs/test.toml:11:23: stage 'classify' needs 49.4 MiB on every rank, but the budget is 40.0 MiB; most of it is tensor 'train' (u8 [60000, 784], whole), 44.9 MiB
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                       ^^^^^
    help: one thread needs 48MiB, as 'train' is given whole: no index of it is cut
    "#);
    assert_snapshot!(fault("name =", "memory = \"48MiB\"\nname =", [], &machine(2)), @r#"
    jobs/test.toml:12:23: stage 'classify' needs 49.4 MiB on every rank, but the budget is 48.0 MiB; most of it is tensor 'train' (u8 [60000, 784], whole), 44.9 MiB
       |
    12 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                       ^^^^^
    help: --threads 1 fits, or a budget of 50MiB
    "#);
    assert_snapshot!(fault("256MiB", "32MiB", [], &machine(2)), @r#"
    jobs/test.toml:11:23: a kernel of stage 'classify' needs 45.5 MiB for its tensors, but may have 32.0 MiB of memory; most of it is tensor 'train' (u8 [60000, 784], whole), 44.9 MiB
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                       ^^^^^
    help: limits = { memory = "46MiB" }, and what the kernel itself takes
    "#);
    let vast = [("train", layout(Dtype::U8, &[8_000_000, 784], None))];
    assert_snapshot!(fault("256MiB", "4GiB", vast, &Machine { memory_bytes: 1 << 40, ..machine(2) }), @r#"
    jobs/test.toml:11:23: a kernel of stage 'classify' needs 5.8 GiB for its tensors, but may have 4.0 GiB of memory; most of it is tensor 'train' (u8 [8000000, 784], whole), 5.8 GiB
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |                       ^^^^^
    help: linear memory ends at 4 GiB, and 'train' is given whole: no index of it is cut
    "#);
    let one_chunk = [("test", layout(Dtype::F64, &[1_000_000, 784], Some(&[100_000, 784])))];
    assert_snapshot!(fault("256MiB", "4GiB", one_chunk, &machine(2)), @r#"
    jobs/test.toml:11:12: a kernel of stage 'classify' needs 4.7 GiB for its tensors, but may have 4.0 GiB of memory; most of it is tensor 'test' (f64 [1000000, 784], blocks of q=800000), 4.7 GiB
       |
    11 | compute = "test[q,d], train[n,d], k[] -> predicted[q]"
       |            ^^^^
    help: linear memory ends at 4 GiB, and 'test' is cut in whole chunks, at least q=800000: chunk the datasets finer
    "#);
}
