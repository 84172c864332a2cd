// SPDX-License-Identifier: Apache-2.0
//
// A translation space: all that the TLB holds of one guest, by its number (ASID) and its nested
// tables. Entries of several guests are in the TLB side by side, as contexts and generations are
// unique in a CPU. What a space is found by again, these numbers, is parked while another runs.
//
// A space is the guest's only as long as what entries depend on is the same, so it is parked with
// the paging mode. An invalidation of a guest that does not run drops its parked space.

import Synchronization
import X86

/// Whose translations they are. No number is reused while a space is parked, unless the hypervisor
/// uses one for two control blocks: these are told apart.
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
  /// More guests than these take turns only on a crowded CPU.
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
  /// The guest's state is about to leave the CPU. What follows until a space is entered is
  /// nobody's.
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

  /// The current space is nobody's: its numbers are not parked.
  func forgetTranslations() {
    if currentSpace == nil { return }
    currentSpace = nil
    forgetContexts()
  }

  /// The guest's state is in the CPU; its translations are found again, or there are none.
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
    // A barrier: whoever takes translations afterwards finds the generation of this space.
    let taken = translationsTaken.add(0, ordering: .sequentiallyConsistent).newValue
    if taken != space.taken { cpu.flushTLB() }
  }

  /// A space without entries. Ways to code need no new epoch: the contexts are new.
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
