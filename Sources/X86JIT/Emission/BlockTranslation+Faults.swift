// SPDX-License-Identifier: Apache-2.0
//
// Accesses whose host memory has vanished. The signal handler finds the access by its position and
// continues at its target, which rebuilds the guest's state before the instruction from the host
// registers. For an access with a TLB check of its own that is its out-of-line path. An access
// whose group or loop round was checked has a path of its own, which exits to the interpreter.
//
// So the guest's state must not change between the check and the access.

import X86
import X86CPU
import X86Decoder

/// A position from which faults belong to one access, and their target.
struct FaultSite {
  var position: Int
  var target: Label
}

/// A fault path not yet emitted.
struct FaultWay {
  var start: Label
  var code: Int
  var index: Int
  var flags: FlagState
  var vectors: VectorCache
  /// In rounds without looks.
  var rounds: RoundsRegisters?
}

extension BlockTranslation {
  /// Faults from here on continue at `target`.
  func noteFaults(_ target: Label) {
    guard guardsAccesses else { return }
    faultSites.append(FaultSite(position: a.position, target: target))
  }

  /// Before the access of `n`, which has no check.
  func noteOwnFaults(_ n: Int) {
    guard guardsAccesses else { return }
    let label = a.label()
    noteFaults(label)
    faultWays.append(
      FaultWay(
        start: label, code: current, index: n, flags: flags, vectors: vectors,
        rounds: rounds?.registers))
  }

  /// Exits to the interpreter before instruction `n`.
  func emitFaultWays() {
    for way in faultWays {
      select(way.code)
      scratch.removeAll(keepingCapacity: true)
      a.bind(way.start)
      flags = way.flags
      if let registers = way.rounds {
        uncountRounds(Int32(way.index))
        giveBack(registers)
      }
      saveFlags()
      releaseVectors(way.vectors)
      if way.rounds == nil, countsInstructions {
        a.arithmetic(
          .sub, .state(StateOffset.retired), immediate: Int32(instructions.count - way.index))
      }
      if way.index > 0, instructions[way.index - 1].mnemonic == .sti { endShadow() }
      pageRelative(.r13, offset(way.index))
      a.jump(to: thunks.interpret)
    }
  }
}
