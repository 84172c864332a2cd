// SPDX-License-Identifier: Apache-2.0
//
// A translation space: a guest's entries in the TLB, by its number (ASID) and its nested tables.
// Contexts and generations are unique in a CPU, so the TLB can hold entries of several guests.
// While another guest runs, the numbers of a space are parked; with them its entries are valid
// again.
//
// Entries depend on the paging mode, so it is parked with the numbers: in another mode a space
// starts empty. An invalidation for a guest that does not run drops its parked space.

import Synchronization
import X86

/// Identifies a guest. The control block distinguishes guests to which a hypervisor gives the same
/// number.
struct TranslationSpaceKey: Equatable {
  /// ASID.
  var guest: UInt32
  /// Nested tables.
  var nested: UInt64
  /// Address of the control block.
  var controlBlock: UInt64
}

/// What TLB entries depend on, besides CR3 and PKRU, which have contexts of their own.
struct TranslationMode: Equatable {
  var cr0: UInt64
  var cr4: UInt64
  var efer: UInt64
  var dr7: UInt64

  init(_ s: UnsafeMutablePointer<CPUState>) {
    cr0 = s.pointee.cr0 & CR0.paging.rawValue
    cr4 = s.pointee.cr4 & CR4.paging.rawValue
    efer = s.pointee.efer
    dr7 = s.pointee.dr7
  }
}

struct ParkedTranslationSpace {
  /// Limit of parked spaces; one more drops the oldest.
  static let most = 8

  let key: TranslationSpaceKey
  let mode: TranslationMode
  let contexts: [TLBContext]
  let globalContext: UInt64
  let tlbGeneration: UInt64
  let physicalGeneration: UInt64
  let supervisorDataIsGlobal: Bool
  let supervisorCodeIsGlobal: Bool
  /// `PhysicalCPU.translationsTaken` when it was parked.
  let taken: UInt64
}

extension PhysicalCPU {
  /// Parks the current space, before the guest's state leaves the CPU.
  func parkTranslations() {
    guard let key = currentSpace else { return }
    currentSpace = nil
    let s = cpu.s
    if parkedSpaces.count >= ParkedTranslationSpace.most { parkedSpaces.removeFirst() }
    parkedSpaces.append(
      ParkedTranslationSpace(
        key: key, mode: TranslationMode(s), contexts: pcidContexts,
        globalContext: s.pointee.globalContext, tlbGeneration: s.pointee.tlbGeneration,
        physicalGeneration: s.pointee.physicalGeneration,
        supervisorDataIsGlobal: s.pointee.supervisorDataIsGlobal,
        supervisorCodeIsGlobal: s.pointee.supervisorCodeIsGlobal,
        taken: translationsTaken.load(ordering: .sequentiallyConsistent)))
    // Not emptied in place: the array is the parked space's now, and would be copied.
    pcidContexts = []
  }

  /// Drops the current space without parking it.
  func forgetTranslations() {
    if currentSpace == nil { return }
    currentSpace = nil
    forgetContexts()
  }

  /// Resumes the parked space of the guest whose state is in the CPU, or starts an empty one.
  func enterTranslationSpace(_ key: TranslationSpaceKey) {
    if currentSpace == key { return }
    parkTranslations()
    currentSpace = key
    guard let index = parkedSpaces.firstIndex(where: { $0.key == key }) else {
      return startTranslations()
    }
    let space = parkedSpaces.remove(at: index)
    guard space.mode == TranslationMode(cpu.s) else { return startTranslations() }
    resume(space)
  }

  private func resume(_ space: ParkedTranslationSpace) {
    let s = cpu.s
    pcidContexts = space.contexts
    s.pointee.globalContext = space.globalContext
    s.pointee.tlbGeneration = space.tlbGeneration
    s.pointee.physicalGeneration = space.physicalGeneration
    s.pointee.supervisorDataIsGlobal = space.supervisorDataIsGlobal
    s.pointee.supervisorCodeIsGlobal = space.supervisorCodeIsGlobal
    cpu.switchAddressSpace()
    // A barrier: a thread that takes translations later sees this space's generation.
    let taken = translationsTaken.add(0, ordering: .sequentiallyConsistent).newValue
    if taken != space.taken { cpu.flushTLB() }
  }

  /// Starts an empty space. Links to code need no new epoch, because the contexts are new.
  private func startTranslations() {
    flushPhysicalCache()
    cpu.startGlobalTranslations()
    cpu.s.pointee.supervisorCodeIsGlobal = true
    cpu.switchAddressSpace()
  }

  /// Drops the translations of one linear address.
  func flushPage(_ linear: UInt64, ofGuest number: UInt32) {
    parkedSpaces.removeAll { $0.key.guest == number }
    if currentSpace?.guest == number { cpu.flushPage(linear) }
  }

  /// Drops the translations of a guest's number, or of all guests.
  func flushTranslations(ofGuest number: UInt32?) {
    if let number {
      parkedSpaces.removeAll { $0.key.guest == number }
      if currentSpace?.guest != number { return }
    } else {
      parkedSpaces.removeAll()
    }
    cpu.flushTLB()
  }
}
