// SPDX-License-Identifier: Apache-2.0
//
// An engine is a KVM to run on: a transport, and one line that says which it is and why it was
// chosen. Nothing else in the VMM knows which one it is.

import KVMClient
import Logging
import SystemPackage

/// A chosen engine.
package struct Engine: Sendable {
  package let transport: any KVMTransport
  /// One line for the user.
  package let reason: String
  /// The kernel's KVM, not one in this process.
  package var isDevice: Bool { transport is DeviceTransport }
}

/// The available transports.
package struct EngineSupply: Sendable {
  /// Creates a software KVM with the configuration's physical CPUs.
  package typealias SoftwareMaker =
    @Sendable (_ configuration: Configuration) throws(Errno) -> any KVMTransport

  private let device: any KVMTransport
  private let software: SoftwareMaker?

  /// - Parameters:
  ///   - device: the kernel's KVM.
  ///   - software: nil in a program without the software KVM.
  package init(device: any KVMTransport = DeviceTransport(), software: SoftwareMaker?) {
    self.device = device
    self.software = software
  }

  /// Selects the engine for a configuration.
  package func choose(_ configuration: Configuration) throws(RunError) -> Engine {
    switch configuration.engine {
    case .soft: return try softEngine(configuration, why: "as asked")
    case .kvm:
      guard configuration.physicalProcessors == nil else {
        throw RunError("--pcpus is for the software engine; leave it out with --engine kvm")
      }
      guard configuration.vendor == nil else {
        throw RunError("--vendor is for the software engine; leave it out with --engine kvm")
      }
      if let problem = deviceProblem() {
        throw RunError("--engine kvm: \(problem), or give --engine soft")
      }
      return Engine(transport: device, reason: "engine kvm (\(device.name)), as asked")
    case .auto: return try automatic(configuration)
    }
  }

  private func automatic(_ configuration: Configuration) throws(RunError) -> Engine {
    if configuration.physicalProcessors != nil {
      return try softEngine(configuration, why: "--pcpus asks for its physical CPUs")
    }
    if configuration.vendor != nil {
      return try softEngine(configuration, why: "--vendor asks for its processors")
    }
    if let problem = deviceProblem() { return try softEngine(configuration, why: problem) }
    let speed: EngineSpeed
    do throws(Errno) {
      speed = try EngineProbe.measure(device)
    } catch {
      return try softEngine(configuration, why: "\(device.name) fails a probe guest: \(error)")
    }
    log.debug("\(device.name): \(speed.supervisor) ns supervisor, \(speed.user) ns user")
    let figure = Self.nanoseconds(speed.supervisor)
    if speed.isUsable {
      return Engine(
        transport: device,
        reason: "engine kvm: \(device.name) runs supervisor code at \(figure) an instruction")
    }
    let why = "\(device.name) interprets supervisor code at \(figure) an instruction"
    guard software != nil else {
      return Engine(transport: device, reason: "engine kvm: \(why), but there is no other here")
    }
    return try softEngine(configuration, why: why)
  }

  private func softEngine(
    _ configuration: Configuration, why: String
  ) throws(RunError) -> Engine {
    guard let software else {
      throw RunError("the software engine is not in this program; give --engine kvm")
    }
    do throws(Errno) {
      let transport = try software(configuration)
      return Engine(transport: transport, reason: "engine soft (\(transport.name)): \(why)")
    } catch {
      let hint = error == .noMemory ? "; raise the limit of address space (ulimit -v)" : ""
      throw RunError("the software engine does not start: \(error)\(hint)")
    }
  }

  /// Why the kernel's KVM cannot be used, with a remedy; nil if it can.
  package func deviceProblem() -> String? {
    do throws(Errno) {
      _ = try System(transport: device)
      return nil
    } catch {
      switch error {
      case .noSuchFileOrDirectory, .noSuchAddressOrDevice:
        return "\(device.name) is missing; load the kvm module"
      case .permissionDenied, .notPermitted:
        return "\(device.name) refuses access; join the group that owns it"
      default: return "\(device.name) cannot be opened: \(error)"
      }
    }
  }

  /// How fast the kernel's KVM is.
  package func deviceSpeed() throws(Errno) -> EngineSpeed { try EngineProbe.measure(device) }

  /// A time with two digits.
  package static func nanoseconds(_ value: Double) -> String {
    value < 10 ? "\((value * 10).rounded() / 10) ns" : "\(Int(value.rounded())) ns"
  }
}
