// SPDX-License-Identifier: Apache-2.0
//
// A failing block with as few states, instructions and registers as still fail, and its text.

import X86

extension BlockOracle {
  func explain(_ difference: Difference, _ block: Block, _ plan: Plan) -> String {
    var block = block
    var plan = plan
    var last = difference
    plan.seeds = Array(plan.seeds[...difference.state])
    if let found = shrinkStates(block, &plan) { last = found }
    while let found = shrinkInstructions(&block, plan) { last = found }
    if let found = shrinkRegisters(block, &plan) { last = found }
    var lines = [
      "block differs: MARTLET_ORACLE_SEED=\(settings.seed) MARTLET_ORACLE_CASE=\(plan.number),"
        + " \(plan.seeds.count) states"
    ]
    lines += block.assembled(at: plan.address)?.text ?? []
    lines.append("  from \(Comparison.text(last.input))")
    return (lines + last.text).joined(separator: "\n")
  }

  /// How the block differs if everything begins anew; nil where it does not.
  private func attempt(_ block: Block, _ plan: Plan) -> Difference? {
    guard let code = block.assembled(at: plan.address), !code.bytes.isEmpty else { return nil }
    startRound()
    return firstDifference(code, block, plan, counts: false)
  }

  /// Without the states before the failing one, if they do not matter.
  private func shrinkStates(_ block: Block, _ plan: inout Plan) -> Difference? {
    var last: Difference?
    while plan.seeds.count > 1 {
      var shorter = plan
      shorter.seeds.removeFirst()
      guard let found = attempt(block, shorter) else { return last }
      plan = shorter
      last = found
    }
    return last
  }

  /// Leaves out what can be; nil where nothing can.
  private func shrinkInstructions(_ block: inout Block, _ plan: Plan) -> Difference? {
    var last: Difference?
    for group in block.groups {
      block.leaveOut(group: group)
      if let found = attempt(block, plan) {
        last = found
      } else {
        block.leaveOut(group: group, false)
      }
    }
    return last
  }

  private func shrinkRegisters(_ block: Block, _ plan: inout Plan) -> Difference? {
    var last: Difference?
    for register in 0..<16 {
      plan.zeroed.append(register)
      if let found = attempt(block, plan) { last = found } else { plan.zeroed.removeLast() }
    }
    return last
  }
}
