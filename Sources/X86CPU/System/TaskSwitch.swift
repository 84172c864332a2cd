// SPDX-License-Identifier: Apache-2.0
//
// The hardware task switch (SDM volume 3, "Task Switching").
//
// In VMX non-root operation every attempt exits ("Treatment of Task Switches"), after the processor
// has checked the gate and the TSS descriptor. The hypervisor then performs the switch by calling
// `emulateTaskSwitch` on the same CPU.
//
//     // exit reason 9
//     let task = TaskSwitchQualification(rawValue: qualification)
//     try c.emulateTaskSwitch(
//       selector: task.selector, source: task.source, returnRIP: rip + length)

import X86

/// The dynamic part of a TSS of either format.
private struct TaskImage {
  var cr3: UInt32?
  var rip: UInt32 = 0
  var flags: UInt32 = 0
  var general = InlineArray<8, UInt32>(repeating: 0)
  /// ES, CS, SS, DS, FS, GS.
  var segments = InlineArray<6, UInt16>(repeating: 0)
  var ldt: UInt16 = 0
  var trap = false
}

/// Offsets of the fields of a TSS (SDM volume 3, "Task-State Segment (TSS)" and "16-Bit TSS").
private struct TaskLayout {
  var size: UInt64
  var minimumLimit: UInt32
  var rip: UInt64
  var flags: UInt64
  var general: UInt64
  var segments: UInt64
  var segmentCount: Int
  var ldt: UInt64

  static let large = TaskLayout(
    size: 4, minimumLimit: 0x67, rip: 0x20, flags: 0x24, general: 0x28, segments: 0x48,
    segmentCount: 6, ldt: 0x60)
  static let small = TaskLayout(
    size: 2, minimumLimit: 0x2B, rip: 0x0E, flags: 0x10, general: 0x12, segments: 0x22,
    segmentCount: 4, ldt: 0x2A)
  static let cr3: UInt64 = 0x1C
  static let trap: UInt64 = 0x64

  static func of(_ rights: SegmentAccessRights) -> TaskLayout {
    rights.type & 8 != 0 ? large : small
  }
}

extension CPU {
  /// Switches to the task of the TSS with `selector`.
  ///
  /// - Parameters:
  ///   - returnRIP: EIP for the old task's TSS: the next instruction's for CALL, JMP, IRET
  ///     and software interrupts, else the interrupted one's.
  ///   - errorCode: pushed on the new task's stack.
  /// - Throws: a fault of the old task if its state is still loaded, else a fault of the new
  ///   task, whose state is then loaded; `.vmExit` if guest memory is not mapped.
  package func emulateTaskSwitch(
    selector: UInt16, source: TaskSwitchSource, returnRIP: UInt64, errorCode: UInt32? = nil
  ) throws(GuestException) {
    let found = try checkTask(selector, .invalidTSS, busy: source == .interruptReturn)
    let layout = TaskLayout.of(found.rights)
    if found.descriptor.limit < layout.minimumLimit { throw .selector(.invalidTSS, selector) }
    var image = try readTask(found.descriptor.base, layout)
    let old = segment(.tr).pointee
    try saveTask(source: source, returnRIP: returnRIP)
    if source.nests {
      try storeSystem(old.selector, at: systemAddress(found.descriptor.base))
      image.flags |= UInt32(RFLAGS.nt.rawValue)
    } else if let address = descriptorAddress(old.selector, size: 8) {
      try clearBusy(address)
    }
    if source != .interruptReturn { _ = try setBusy(found) }
    var task = found.segment(selector: selector)
    task.accessRights |= 2
    segment(.tr).pointee = task
    s.pointee.cr0 |= CR0.ts.rawValue
    try loadTaskRegisters(image)
    try loadTaskSegments(image)
    try finishTaskSwitch(image, layout, errorCode)
  }

  // MARK: The old task

  /// Saves the current task's state in its TSS.
  private func saveTask(
    source: TaskSwitchSource, returnRIP: UInt64
  ) throws(GuestException) {
    let layout = TaskLayout.of(segment(.tr).pointee.rights)
    let base = segment(.tr).pointee.base
    var image = UInt32(truncatingIfNeeded: flags)
    if source == .interruptReturn { image &= ~UInt32(RFLAGS.nt.rawValue) }
    try storeTask(UInt32(truncatingIfNeeded: returnRIP), base &+ layout.rip, layout)
    try storeTask(image, base &+ layout.flags, layout)
    for n in 0..<8 {
      let value = UInt32(truncatingIfNeeded: gpr[n])
      try storeTask(value, base &+ layout.general &+ UInt64(n) &* layout.size, layout)
    }
    for n in 0..<layout.segmentCount {
      let register = SegmentRegister(rawValue: UInt8(n)) ?? .ds
      let value = segment(register).pointee.selector
      try storeSystem(
        value, at: systemAddress(base &+ layout.segments &+ UInt64(n) &* layout.size))
    }
  }

  private func storeTask(
    _ value: UInt32, _ address: UInt64, _ layout: TaskLayout
  ) throws(GuestException) {
    if layout.size == 4 {
      try storeSystem(value, at: systemAddress(address))
    } else {
      try storeSystem(UInt16(truncatingIfNeeded: value), at: systemAddress(address))
    }
  }

  // MARK: The new task

  private func readTask(
    _ base: UInt64, _ layout: TaskLayout
  ) throws(GuestException) -> TaskImage {
    var image = TaskImage()
    image.rip = try loadTask(base &+ layout.rip, layout)
    image.flags = try loadTask(base &+ layout.flags, layout)
    for n in 0..<8 {
      image.general[n] = try loadTask(base &+ layout.general &+ UInt64(n) &* layout.size, layout)
    }
    for n in 0..<layout.segmentCount {
      let address = systemAddress(base &+ layout.segments &+ UInt64(n) &* layout.size)
      image.segments[n] = try loadSystem(address, as: UInt16.self)
    }
    image.ldt = try loadSystem(systemAddress(base &+ layout.ldt), as: UInt16.self)
    if layout.size == 4 {
      image.cr3 = try loadSystem(systemAddress(base &+ TaskLayout.cr3), as: UInt32.self)
      let trap = try loadSystem(systemAddress(base &+ TaskLayout.trap), as: UInt16.self)
      image.trap = trap & 1 != 0
    }
    return image
  }

  private func loadTask(
    _ address: UInt64, _ layout: TaskLayout
  ) throws(GuestException) -> UInt32 {
    if layout.size == 4 { return try loadSystem(systemAddress(address), as: UInt32.self) }
    return UInt32(try loadSystem(systemAddress(address), as: UInt16.self))
  }

  /// Loads all but descriptors; segment registers get their selectors, without access yet.
  private func loadTaskRegisters(_ image: TaskImage) throws(GuestException) {
    if let cr3 = image.cr3, s.pointee.cr0 & CR0.pg.rawValue != 0 {
      try writeCR3(UInt64(cr3))
    }
    s.pointee.rip = UInt64(image.rip)
    flags = UInt64(image.flags)
    for n in 0..<8 { gpr[n] = UInt64(image.general[n]) }
    s.pointee.dr7 &= ~(0x55 | DR7.le.rawValue)
    let virtual = isVirtual8086
    for n in 0..<6 {
      let register = SegmentRegister(rawValue: UInt8(n)) ?? .ds
      segment(register).pointee =
        virtual
        ? realModeSegment(register, image.segments[n])
        : register == .cs || register == .ss
          ? nullSegment(image.segments[n]) : nullKept(register, image.segments[n])
    }
    segment(.ldtr).pointee = nullSegment(image.ldt)
    if !virtual {
      let level = UInt32(Selector.rpl(image.segments[1])) << 5
      segment(.cs).pointee.accessRights = 0xC09B | level
      segment(.cs).pointee.limit = .max
      segment(.ss).pointee.accessRights |= level
    }
    updateMode()
  }

  /// Loads the new task's descriptors, whose faults are the new task's.
  private func loadTaskSegments(_ image: TaskImage) throws(GuestException) {
    segment(.ldtr).pointee = try localTable(image.ldt, .invalidTSS)
    if isVirtual8086 { return }
    let target = try taskCode(image.segments[1])
    segment(.cs).pointee = target
    segment(.ss).pointee = try stackSegment(
      image.segments[2], cpl: Selector.rpl(image.segments[1]), .invalidTSS, long: false)
    updateMode()
    for register in [SegmentRegister.es, .ds, .fs, .gs] {
      segment(register).pointee = try dataSegment(
        register, image.segments[Int(register.rawValue)], .invalidTSS)
    }
    updateFlatness()
  }

  private func taskCode(_ selector: UInt16) throws(GuestException) -> SegmentState {
    if Selector.isNull(selector) { throw .selector(.invalidTSS, selector) }
    var found = try readDescriptor(selector, else: .invalidTSS)
    let rights = found.rights
    let level = Selector.rpl(selector)
    guard rights.isCode, rights.isConformingOrExpandDown ? rights.dpl <= level : rights.dpl == level
    else { throw .selector(.invalidTSS, selector) }
    guard rights.isPresent else { throw .selector(.segmentNotPresent, selector) }
    try markAccessed(&found)
    return found.segment(selector: selector)
  }

  private func finishTaskSwitch(
    _ image: TaskImage, _ layout: TaskLayout, _ errorCode: UInt32?
  ) throws(GuestException) {
    if let errorCode {
      var stack = StackFrame(self)
      try stack.push(UInt64(errorCode), size: UInt8(layout.size))
      stack.commit()
    }
    if s.pointee.rip > segment(.cs).pointee.limit { throw .generalProtection }
    if image.trap { throw .debug(.bt) }
  }
}
