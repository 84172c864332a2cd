// SPDX-License-Identifier: Apache-2.0
//
// The log of the VMM, for diagnosing problems. Errors, outcomes and the engine's line are messages
// for the user and are not logged.
//
//     log.debug("CPU 0 starts")        // seen with --log debug

import Glibc
import Host
import Logging

/// The log of the VMM.
let log = Logger(label: "martlet")

package enum Diagnostics {
  /// Only problems that do not end the run.
  package static let defaultLevel = Logger.Level.warning.rawValue

  /// The values of `--log`.
  package static var levels: [String] { Logger.Level.allCases.map(\.rawValue) }

  /// Sends messages of a level and above to standard error. Call it once, before a machine is
  /// created.
  package static func start(level text: String) throws(RunError) {
    guard let level = Logger.Level(rawValue: text) else {
      let names = levels.joined(separator: ", ")
      throw RunError("--log \(text): unknown level; give one of \(names)")
    }
    LoggingSystem.bootstrap { _ in StandardErrorHandler(logLevel: level) }
  }

  /// A warning of an engine.
  @Sendable package static func warn(_ lines: [String]) {
    for line in lines { log.warning("\(line)") }
  }
}

/// One line for each message, without a time: most messages come before the guest starts.
private struct StandardErrorHandler: LogHandler {
  var logLevel: Logger.Level
  var metadata: Logger.Metadata = [:]
  var metadataProvider: Logger.MetadataProvider?

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    let end = RawTerminal.isActive ? "\r\n" : "\n"
    writeText(STDERR_FILENO, "martlet: \(event.level): \(event.message)\(end)")
  }
}
