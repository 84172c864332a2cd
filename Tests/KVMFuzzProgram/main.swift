// SPDX-License-Identifier: Apache-2.0
//
// Random calls of the KVM API on several threads, made to be run by `martlet kvm`: no call may end
// the process, last for ever, or answer what the documentation does not have.
//
// usage: martlet-kvm-fuzz [--calls N] [--minutes N] [--threads N] [--seed S] [--verbose] [--holes]
//        [--wait]
//
// --minutes ends by time, not by calls; --verbose prints how often each call had which answer;
// --holes gives machines memory that is not there; --wait leaves a process that hangs to a
// debugger. A failure is printed with its seed, and the status is 1; 3 for a call that does not
// return. A crash ends the process as crashes do.

import CHost
import Glibc
import Synchronization

struct Options: Sendable {
  var calls = 1_000_000
  var deadline = UInt64.max
  var threads = 4
  var seed = UInt64.random(in: 0 ... .max)
  var isVerbose = false
  var usesHoles = false
  var waits = false

  nonisolated(unsafe) static var current = Options()

  mutating func parse(_ arguments: ArraySlice<String>) -> Bool {
    var rest = arguments
    while let name = rest.popFirst() {
      switch name {
      case "--verbose": isVerbose = true
      case "--holes": usesHoles = true
      case "--wait": waits = true
      default:
        guard let value = rest.popFirst().flatMap({ UInt64($0) }) else { return false }
        switch name {
        case "--minutes": (calls, deadline) = (.max, Clock.now() &+ value &* 60_000_000_000)
        case "--calls": calls = Int(clamping: value)
        case "--threads": threads = max(1, Int(clamping: value))
        case "--seed": seed = value
        default: return false
        }
      }
    }
    return true
  }
}

enum Clock {
  static func now() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }
}

enum Report {
  static func say(_ text: String) {
    let line = Array((text + "\n").utf8)
    _ = write(STDOUT_FILENO, line, line.count)
  }

  static func end(_ text: String, _ status: Int32) -> Never {
    say("FAILED with --seed \(Options.current.seed) --threads \(Options.current.threads): \(text)")
    _exit(status)
  }
}

func onSignal(_ number: Int32) {}

/// Ends long KVM_RUNs by signals, and the program when a call does not return.
func watch(_ workers: [Worker], _ isDone: () -> Bool) {
  let limit: UInt64 = 30_000_000_000
  var progress = workers.map { _ in (calls: -1, time: Clock.now()) }
  while !isDone() {
    usleep(200)
    let now = Clock.now()
    for (index, worker) in workers.enumerated() {
      let since = worker.runningSince.load(ordering: .sequentiallyConsistent)
      if since != 0, now > since + 200_000 { pthread_kill(worker.thread, SIGUSR1) }
      let calls = worker.calls.load(ordering: .relaxed)
      if calls != progress[index].calls {
        progress[index] = (calls, now)
      } else if now > progress[index].time + limit {
        let all = workers.map { "thread \($0.number) in \($0.current)" }
        if Options.current.waits {
          Report.say("thread \(worker.number) hangs; for a debugger: process \(getpid())")
          sleep(3600)
        }
        Report.end("thread \(worker.number) hangs: \(all.joined(separator: ", "))", 3)
      }
    }
  }
}

func work(_ argument: UnsafeMutableRawPointer?) -> UnsafeMutableRawPointer? {
  guard let argument else { return nil }
  let worker = Unmanaged<Worker>.fromOpaque(argument).takeRetainedValue()
  let share = Options.current.calls / Options.current.threads
  let deadline = Options.current.deadline
  while worker.calls.load(ordering: .relaxed) < share {
    worker.step()
    if deadline != .max, Clock.now() > deadline { break }
  }
  done.add(1, ordering: .sequentiallyConsistent)
  return nil
}

let done = Atomic<Int>(0)

func run() throws {
  let options = Options.current
  Report.say("seed \(options.seed), \(options.threads) threads")
  var action = sigaction()
  action.__sigaction_handler.sa_handler = onSignal
  sigaction(SIGUSR1, &action, nil)
  let world = try World()
  let workers = try (0..<options.threads).map {
    try Worker(world, number: $0, seed: options.seed)
  }
  for worker in workers {
    pthread_create(&worker.thread, nil, work, Unmanaged.passRetained(worker).toOpaque())
  }
  watch(workers) { done.load(ordering: .sequentiallyConsistent) == options.threads }
  for worker in workers { pthread_join(worker.thread, nil) }
  let calls = workers.reduce(0) { $0 + $1.calls.load(ordering: .relaxed) }
  if options.isVerbose { printAnswers(workers) }
  Report.say("\(calls) calls: ok")
}

func printAnswers(_ workers: [Worker]) {
  var all: [String: [Int32: Int]] = [:]
  for worker in workers {
    for (name, answers) in worker.answers {
      all[name, default: [:]].merge(answers) { $0 + $1 }
    }
  }
  for (name, answers) in all.sorted(by: { $0.key < $1.key }) {
    let text = answers.sorted { $0.key > $1.key }.map { "\($0.key): \($0.value)" }
    Report.say("\(name) \(text.joined(separator: ", "))")
  }
}

if !Options.current.parse(CommandLine.arguments.dropFirst()) {
  Report.say(
    "usage: martlet-kvm-fuzz [--calls N] [--minutes N] [--threads N] [--seed S] [--verbose] "
      + "[--holes] [--wait]")
  exit(2)
}
do {
  try run()
} catch {
  Report.end("\(error)", 1)
}
