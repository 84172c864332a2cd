// SPDX-License-Identifier: Apache-2.0
//
// The common configuration: status, features and queues (virtio 1.2, "Common configuration
// structure layout"). A table of fields serves accesses of any width.

import Synchronization

/// The fields that the driver sets, as a plain value.
struct CommonConfiguration: Sendable, Hashable {
  /// Offsets of the fields. The sizes are up to the next one's offset.
  enum Field: UInt64, CaseIterable {
    case deviceFeatureSelect = 0x00
    case deviceFeature = 0x04
    case driverFeatureSelect = 0x08
    case driverFeature = 0x0C
    case configurationVector = 0x10
    case queueCount = 0x12
    case status = 0x14
    case generation = 0x15
    case queueSelect = 0x16
    case queueSize = 0x18
    case queueVector = 0x1A
    case queueEnable = 0x1C
    case queueNotifyOffset = 0x1E
    case queueDescriptors = 0x20
    case queueDriver = 0x28
    case queueDevice = 0x30

    /// The field at an offset, and the offset within it.
    static func at(_ offset: UInt64) -> (field: Field, inside: UInt64)? {
      guard offset < UInt64(size), let field = allCases.last(where: { $0.rawValue <= offset })
      else { return nil }
      return (field, offset &- field.rawValue)
    }
  }
  static let size = 0x38

  struct Queue: Sendable, Hashable {
    var place: QueuePlace
    var isEnabled = false
  }

  private let queueSizes: [UInt16]
  var deviceFeatureSelect: UInt32 = 0
  var driverFeatureSelect: UInt32 = 0
  var driverFeatures: UInt64 = 0
  var status: UInt8 = 0
  var queueSelect: UInt16 = 0
  var queues: [Queue]
  /// The driver has requested a reset, and the device still processes requests.
  var isResetting = false

  init(queueSizes: [UInt16]) {
    self.queueSizes = queueSizes
    queues = queueSizes.map { Queue(place: QueuePlace(size: $0)) }
  }

  /// The selected queue; nil if there is none of this number.
  var selected: Int? { Int(queueSelect) < queues.count ? Int(queueSelect) : nil }

  mutating func reset() { self = CommonConfiguration(queueSizes: queueSizes) }
}

extension VirtioPCI {
  private typealias Field = CommonConfiguration.Field

  /// The offered features: the device's own and the transport's.
  private var offered: UInt64 {
    device.features | VirtioFeature.version1 | VirtioFeature.indirectDescriptors
      | VirtioFeature.eventIndex
  }

  func readCommon(_ offset: UInt64, _ width: Int) -> UInt64 {
    guard let (field, inside) = Field.at(offset) else { return 0 }
    return state.withLock { value(of: field, &$0.common) } >> (inside &* 8)
  }

  func writeCommon(_ offset: UInt64, _ width: Int, _ value: UInt64) {
    guard let (field, inside) = Field.at(offset) else { return }
    state.withLock { state in
      // Drivers write 64-bit addresses in halves; other fields are written whole.
      let old = inside == 0 && width == 8 ? 0 : self.value(of: field, &state.common)
      let mask: UInt64 = width >= 8 ? .max : (1 << UInt64(truncatingIfNeeded: width &* 8)) &- 1
      let shift = inside &* 8
      set(field, old & ~(mask << shift) | value << shift, &state.common)
    }
  }

  private func value(of field: Field, _ common: inout CommonConfiguration) -> UInt64 {
    let queue = common.selected
    let place = queue.map { common.queues[$0].place }
    switch field {
    case .deviceFeatureSelect: return UInt64(common.deviceFeatureSelect)
    case .deviceFeature: return Self.half(offered, common.deviceFeatureSelect)
    case .driverFeatureSelect: return UInt64(common.driverFeatureSelect)
    case .driverFeature: return Self.half(common.driverFeatures, common.driverFeatureSelect)
    case .configurationVector: return UInt64(interrupts.vector(nil))
    case .queueCount: return UInt64(common.queues.count)
    case .status: return UInt64(status(&common))
    case .generation: return UInt64(interrupts.generation)
    case .queueSelect: return UInt64(common.queueSelect)
    case .queueSize: return UInt64(place?.size ?? 0)
    case .queueVector: return queue.map { UInt64(interrupts.vector($0)) } ?? 0xFFFF
    case .queueEnable: return queue.map { common.queues[$0].isEnabled ? 1 : 0 } ?? 0
    case .queueNotifyOffset: return UInt64(common.queueSelect)
    case .queueDescriptors: return place?.descriptors ?? 0
    case .queueDriver: return place?.driver ?? 0
    case .queueDevice: return place?.device ?? 0
    }
  }

  private func set(_ field: Field, _ value: UInt64, _ common: inout CommonConfiguration) {
    switch field {
    case .deviceFeatureSelect: common.deviceFeatureSelect = UInt32(truncatingIfNeeded: value)
    case .driverFeatureSelect: common.driverFeatureSelect = UInt32(truncatingIfNeeded: value)
    case .driverFeature: setFeatures(UInt32(truncatingIfNeeded: value), &common)
    case .configurationVector: interrupts.setVector(nil, UInt16(truncatingIfNeeded: value))
    case .status: setStatus(UInt8(truncatingIfNeeded: value), &common)
    case .queueSelect: common.queueSelect = UInt16(truncatingIfNeeded: value)
    default: if let queue = common.selected { set(field, value, queue, &common) }
    }
  }

  /// Sets a field of the selected queue, unless it is enabled.
  private func set(
    _ field: Field, _ value: UInt64, _ queue: Int, _ common: inout CommonConfiguration
  ) {
    if field == .queueVector {
      interrupts.setVector(queue, UInt16(truncatingIfNeeded: value))
      return
    }
    guard !common.queues[queue].isEnabled else { return }
    switch field {
    case .queueSize: common.queues[queue].place.size = UInt16(truncatingIfNeeded: value)
    case .queueDescriptors: common.queues[queue].place.descriptors = value
    case .queueDriver: common.queues[queue].place.driver = value
    case .queueDevice: common.queues[queue].place.device = value
    case .queueEnable where value & 0xFFFF == 1: enable(queue, &common)
    default: break
    }
  }

  private func enable(_ queue: Int, _ common: inout CommonConfiguration) {
    guard !common.isResetting, common.status & VirtioStatus.featuresOK != 0 else { return }
    common.queues[queue].isEnabled = true
    let place = common.queues[queue].place
    if !device.connection.queues[queue].enable(place, features: common.driverFeatures) {
      interrupts.fail("queue \(queue) cannot be where it is said to be")
    }
  }

  // MARK: Features and status

  private static func half(_ features: UInt64, _ select: UInt32) -> UInt64 {
    select < 2 ? features >> (UInt64(select) &* 32) & 0xFFFF_FFFF : 0
  }

  private func setFeatures(_ value: UInt32, _ common: inout CommonConfiguration) {
    guard common.driverFeatureSelect < 2, common.status & VirtioStatus.featuresOK == 0 else {
      return
    }
    let shift = UInt64(common.driverFeatureSelect) &* 32
    common.driverFeatures =
      common.driverFeatures & ~(0xFFFF_FFFF << shift) | UInt64(value) << shift
  }

  /// The status, which becomes 0 when a reset completes.
  private func status(_ common: inout CommonConfiguration) -> UInt8 {
    if common.isResetting, !device.connection.queues.contains(where: \.isBusy) { common.reset() }
    return common.status | (interrupts.isBroken ? VirtioStatus.needsReset : 0)
  }

  private func setStatus(_ value: UInt8, _ common: inout CommonConfiguration) {
    if value == 0 { return reset(&common) }
    guard !common.isResetting else { return }
    var new = value & ~VirtioStatus.needsReset | common.status
    let added = new & ~common.status
    if added & VirtioStatus.featuresOK != 0 {
      let features = common.driverFeatures
      let isFine = features & ~offered == 0 && features & VirtioFeature.version1 != 0
      if !isFine { new &= ~VirtioStatus.featuresOK }
    }
    common.status = new
    if added & VirtioStatus.driverOK != 0, new & VirtioStatus.featuresOK != 0 {
      interrupts.activate()
      device.activate(features: common.driverFeatures)
    }
  }

  func reset(_ common: inout CommonConfiguration) {
    for queue in device.connection.queues { queue.disable() }
    device.reset()
    interrupts.reset()
    common.isResetting = true
    _ = status(&common)
  }
}
