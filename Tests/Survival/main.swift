// SPDX-License-Identifier: Apache-2.0
//
// The program whose guests try to break their monitor: all batches in processes of their own,
// or one batch by its number. It fails where a guest ends its process.

import Glibc

let arguments = Array(CommandLine.arguments.dropFirst())
do {
  if arguments.first == "batch" {
    guard arguments.count >= 2, let number = UInt64(arguments[1]) else { exit(64) }
    let rounds = arguments.count > 2 ? Int(arguments[2]) ?? 1 : 400
    let descriptor = arguments.count > 3 ? Int32(arguments[3]) : nil
    exit(try Survival.batch(number, rounds: rounds, descriptor: descriptor))
  }
  exit(try Survival.run(arguments))
} catch {
  print("survive: \(error)")
  exit(1)
}
