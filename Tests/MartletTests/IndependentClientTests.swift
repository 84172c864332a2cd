// SPDX-License-Identifier: Apache-2.0
//
// Tests/Clients/client.c, a client in C with the kernel's header alone, compiled here by the host's
// compiler: what it prints under `martlet kvm`, and on the kernel's KVM where there is one.

import Glibc
import HostTestSupport
import Testing

@Suite(.enabled(if: IndependentClient.compiler != nil, "no C compiler (cc)"))
struct IndependentClientTests {
  @Test(arguments: IndependentClient.parts) func software(_ part: IndependentClient.Part) throws {
    let program = try #require(IndependentClient.program)
    let result = try Command.run(["kvm", "--", program, part.name])
    #expect(result.status == 0 && result.output == part.output, "\(result)")
  }

  @Test(
    .enabled(if: KernelKVM.kind != nil, "\(KernelKVM.missing)"),
    arguments: IndependentClient.parts)
  func kernel(_ part: IndependentClient.Part) throws {
    let program = try #require(IndependentClient.program)
    let result = try Command.run([part.name], path: program, limit: 120)
    guard let reason = part.emulatingDiffers, KernelKVM.kind == .emulating else {
      #expect(result.status == 0 && result.output == part.output, "\(result)")
      return
    }
    withKnownIssue("\(reason)") {
      #expect(result.status == 0 && result.output == part.output, "\(result)")
    }
  }
}

enum IndependentClient {
  struct Part: Sendable, CustomTestStringConvertible {
    var name: String
    var output: String
    /// Where a KVM that emulates supervisor code answers otherwise: who is right.
    var emulatingDiffers: String?

    init(_ name: String, _ lines: [String], emulatingDiffers: String? = nil) {
      self.name = name
      output = lines.map { $0 + "\n" }.joined()
      self.emulatingDiffers = emulatingDiffers
    }

    var testDescription: String { name }
  }

  static let parts = [
    Part(
      "ports",
      [
        "out 10 4b", "out 2000 1234", "in 2000", "out 11 5a", "out 2000 68", "out 2000 65",
        "out 2000 6c", "out 2000 6c", "out 2000 6f", "exit 5 rip 1017 rcx 0",
      ]),
    Part(
      "mmio",
      [
        "read f0010 1", "write f0020 1 44", "read f0012 2", "write f0022 2 3344", "read f0014 4",
        "write f0024 4 11223344", "read f0018 2", "write f0018 2 3345", "exit 5",
      ]),
    Part(
      "long",
      [
        "out 10 1784293664", "out 11 707107", "exit 8 rbx 500000500000 rip 1022",
        "translation 123456 1",
      ],
      emulatingDiffers:
        "a KVM without VT-x emulates no CVTSI2SS and says so (KVM_EXIT_INTERNAL_ERROR); "
        + "CPUID has SSE, so the instruction is to be executed"),
    Part(
      "interrupts",
      [
        "exit 2 port 10 in service 10000", "exit 2 port 10 in service 20000", "delivered to 1",
        "exit 2 port 10 in service 40000",
      ],
      emulatingDiffers: "the in-service bit is set from delivery to EOI (SDM volume 3, \"Interrupt "
        + "Acceptance for Fixed Interrupts\"); a KVM without VT-x shows none"),
    Part("doorbells", ["out 50 1", "exit 5 port 8 1 memory 8 1"]),
    Part(
      "state",
      [
        "REGS", "SREGS", "FPU", "XSAVE", "XCRS", "DEBUGREGS", "VCPU_EVENTS", "MP_STATE",
      ].map { "KVM_SET_\($0) same" } + [
        "msrs set 3 got 3 ffff800000001234 10 7fff00000000 refused at 1",
        "paging without protection -1 Invalid argument",
      ]),
    Part("dirty", ["20 23 dirty", "25 dirty", "dirty"]),
    Part("threads", (0..<4).map { "thread \(499500 + $0)" }),
  ]

  static let compiler: String? = ["/usr/bin/cc", "/usr/bin/gcc", "/usr/bin/clang"].first {
    access($0, X_OK) == 0
  }

  /// The compiled client; nil where it does not compile.
  static let program: String? = {
    guard let compiler, let path = try? Command.temporaryFile([]) else { return nil }
    let source = Command.package + "/Tests/Clients/client.c"
    let flags = ["-O1", "-Wall", "-pthread", "-o", path, source]
    let result = try? Command.run(flags, path: compiler)
    return result?.status == 0 && result?.errors == "" ? path : nil
  }()
}
