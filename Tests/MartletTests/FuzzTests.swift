// SPDX-License-Identifier: Apache-2.0
//
// A million random calls of the KVM API through the library that martlet kvm preloads: each
// answer is a documented one, and the program lives on.

import HostTestSupport
import Testing

@Suite struct FuzzTests {
  @Test func aMillionCalls() throws {
    let program = Command.products + "/martlet-kvm-fuzz"
    let result = try Command.run(
      ["kvm", "--", program, "--calls", "1000000", "--holes", "--seed", "1"], limit: 600)
    #expect(result.status == 0 && result.output.hasSuffix(": ok\n"), "\(result)")
  }
}
