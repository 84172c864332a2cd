// SPDX-License-Identifier: Apache-2.0
//
// One physical CPU of the software processor: its state, TLB and block cache, and the verbs of VT-x
// with which the hypervisor runs guests on it. Guest code executes in VMX non-root operation only;
// "root mode" is the program that calls the verbs.
//
// A physical CPU is used by one thread at a time (whoever holds it from the hypervisor's pool); only
// `kick` and the shootdown queue are for other threads.
//
//     let cpu = try PhysicalCPU(number: 0)
//     try cpu.vmxon(region)
//     try cpu.vmclear(vmcs); try cpu.vmptrld(vmcs)
//     try cpu.vmwrite(.guestRIP, 0x1000); ...
//     try cpu.vmlaunch()                      // runs the guest until it exits
//     let reason = try cpu.vmread(.exitReason)

import Host
import Synchronization
import X86
import X86Decoder

package final class PhysicalCPU: @unchecked Sendable {
  /// 0 to 63, unique among the CPUs of this process.
  package let number: Int
  package let cpu: CPU
  let tlbBanks: UnsafeMutablePointer<TLBEntry>
  package let blocks: BlockCache

  package init(number: Int) {
    self.number = number
    let size = CPU.vectorOffset + MemoryLayout<VectorState>.size
    let raw = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 4096)
    raw.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    tlbBanks = .allocate(capacity: TLB.entriesPerBank * TLB.bankCount)
    tlbBanks.initialize(repeating: .invalid, count: TLB.entriesPerBank * TLB.bankCount)
    cpu = CPU(raw)
    cpu.s.initialize(to: CPUState(tlb: tlbBanks))
    cpu.vector.initialize(to: VectorState())
    blocks = BlockCache(cpu: cpu)
    cpu.s.pointee.owner = Unmanaged.passUnretained(self).toOpaque()
  }

  deinit {
    tlbBanks.deallocate()
    cpu.raw.deallocate()
  }

  private var requestWord: UnsafeMutablePointer<Atomic<UInt64>> {
    (cpu.raw + MemoryLayout<CPUState>.offset(of: \.request)!)
      .assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  /// From any thread: the guest leaves with an external-interrupt exit at the next block.
  package func kick() { request(CPURequest.kick) }

  /// From any thread: sets bits of `CPUState.request`.
  package func request(_ bits: UInt64) {
    requestWord.pointee.bitwiseOr(bits, ordering: .sequentiallyConsistent)
  }

  /// Clears bits of `CPUState.request`; returns those that were set.
  package func takeRequest(_ bits: UInt64) -> UInt64 {
    requestWord.pointee.bitwiseAnd(~bits, ordering: .sequentiallyConsistent).oldValue & bits
  }
}
