// SPDX-License-Identifier: Apache-2.0
//
// What libFuzzer calls. `make fuzz-inputs` builds this program with the fuzzer and AddressSanitizer
// and runs each part (`Part`) for a while:
//
//     MARTLET_FUZZ_PART=devices martlet-fuzz -max_total_time=60 CORPUS    # goes on with a corpus
//     MARTLET_FUZZ_PART=devices martlet-fuzz crash-0123                   # runs a failure again
//
// A part fails by ending the process: a trap, a check of its own, or a report of the sanitizer.

import Glibc

/// The part that MARTLET_FUZZ_PART names.
private let part: Part = {
  let name = getenv("MARTLET_FUZZ_PART").map { String(cString: $0) } ?? ""
  guard let part = Part(rawValue: name) else {
    let names = Part.allCases.map(\.rawValue).joined(separator: ", ")
    fatalError("set MARTLET_FUZZ_PART to one of \(names)")
  }
  return part
}()

/// Before the first input: MARTLET_FUZZ_SEEDS names a folder for inputs to begin with.
@_cdecl("LLVMFuzzerInitialize")
public func fuzzerInitialize(
  _ count: UnsafeMutableRawPointer, _ arguments: UnsafeMutableRawPointer
) -> CInt {
  guard let folder = getenv("MARTLET_FUZZ_SEEDS").map({ String(cString: $0) }) else { return 0 }
  for (number, seed) in part.seeds.enumerated() {
    guard let file = fopen("\(folder)/seed-\(number)", "w") else { return 0 }
    fwrite(seed, 1, seed.count, file)
    fclose(file)
  }
  return 0
}

@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzerTestOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  part.run(UnsafeRawBufferPointer(start: bytes, count: count))
  return 0
}

// MARK: The main function

/// What the package manager names main in a program of a package with tests; libFuzzer's own main
/// function does nothing else.
@_cdecl("martlet_fuzz_main")
public func fuzzMain(_ count: CInt, _ arguments: UnsafeMutableRawPointer) -> CInt {
  var count = count
  var arguments = arguments
  return runFuzzer(&count, &arguments, { fuzzerTestOneInput($0, $1) })
}

@_silgen_name("LLVMFuzzerRunDriver")
private func runFuzzer(
  _ count: UnsafeMutablePointer<CInt>,
  _ arguments: UnsafeMutablePointer<UnsafeMutableRawPointer>,
  _ test: @convention(c) (UnsafePointer<UInt8>?, Int) -> CInt
) -> CInt
