// SPDX-License-Identifier: Apache-2.0
//
// Accesses whose host memory has gone. The signal's handler finds the access by its position and
// goes on at its target, which makes of the host's registers the guest's state before the
// instruction: the way out of line of an access that looked for itself. One that did not, because
// its group's first access or the round's beginning did, has a way of its own, which leaves to the
// interpreter.
//
// So nothing of the guest's state may change between the look and the access.

import X86
import X86CPU
import X86Decoder

/// A position from which on faults are those of one access, and where they go.
struct FaultSite {
  var position: Int
  var target: Label
}

/// A way of its own, still to be emitted.
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
  /// What faults from here on goes to `target`.
  func noteFaults(_ target: Label) {
    guard guardsAccesses else { return }
    faultSites.append(FaultSite(position: a.position, target: target))
  }

  /// The access of `n`, which does not look, follows.
  func noteOwnFaults(_ n: Int) {
    guard guardsAccesses else { return }
    let label = a.label()
    noteFaults(label)
    faultWays.append(
      FaultWay(
        start: label, code: current, index: n, flags: flags, vectors: vectors,
        rounds: rounds?.registers))
  }

  /// Instruction `n` is left to the interpreter, nothing of it having happened.
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
