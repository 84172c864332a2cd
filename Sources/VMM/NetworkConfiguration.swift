// SPDX-License-Identifier: Apache-2.0
//
// The argument of --net: how the guest reaches a network, and options after commas.
//
//     user,publish=8080:80,mac=52:54:00:12:34:56

import Devices
import SystemPackage

/// The network of a machine.
package struct NetworkConfiguration: Sendable, Hashable {
  /// A locally administered address, which no manufacturer uses.
  package static let defaultAddress = "52:54:00:12:34:56"

  package var address: MACAddress
  /// The gateway's address reaches the host itself.
  package var reachesHost = false
  /// Ports of the host that are forwarded to the guest.
  package var published: [PublishedPort] = []

  /// A TCP port of the host and the guest's port for it.
  package struct PublishedPort: Sendable, Hashable {
    package let host: UInt16
    package let guest: UInt16

    /// Parses text such as "8080:80"; a single number is used for both.
    init?(_ text: some StringProtocol) {
      let parts = text.split(separator: ":", omittingEmptySubsequences: false)
      let numbers = parts.compactMap { UInt16($0) }.filter { $0 > 0 }
      guard numbers.count == parts.count, (1...2).contains(numbers.count) else { return nil }
      host = numbers[0]
      guest = numbers[numbers.count - 1]
    }
  }

  /// Parses the option's text; nil for no network.
  package static func parse(_ text: String) throws(RunError) -> NetworkConfiguration? {
    let parts = text.split(separator: ",", omittingEmptySubsequences: false)
    switch parts.first {
    case "none" where parts.count == 1: return nil
    case "user":
      guard let address = MACAddress(defaultAddress) else { return nil }
      var configuration = NetworkConfiguration(address: address)
      for option in parts.dropFirst() { try configuration.set(option, text) }
      return configuration
    default: throw RunError("--net \(text): unknown network; give user or none")
    }
  }

  private init(address: MACAddress) { self.address = address }

  private mutating func set(_ option: Substring, _ text: String) throws(RunError) {
    let parts = option.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    let value = parts.count == 2 ? parts[1] : ""
    switch parts.first {
    case "mac":
      guard let address = MACAddress(String(value)) else {
        throw RunError(
          "--net \(text): mac=\(value) is not a card's address; write it like \(Self.defaultAddress)"
        )
      }
      self.address = address
    case "host" where value == "on": reachesHost = true
    case "host" where value == "off": reachesHost = false
    case "publish":
      guard let port = PublishedPort(value) else {
        throw RunError(
          "--net \(text): publish=\(value) is not a pair of ports; write it like publish=8080:80")
      }
      published.append(port)
    default:
      throw RunError(
        "--net \(text): unknown option \(option); give mac=ADDRESS, host=on or publish=PORT:PORT")
    }
  }
}
