// SPDX-License-Identifier: Apache-2.0
//
// The packets of a virtio socket device and its driver: a header, followed by bytes of a stream
// (virtio 1.2, "Socket Device", "Device Operation").

import Host

/// Names a connection: its port at the host and its port in the guest.
struct VsockPorts: Sendable, Hashable {
  let host: UInt32
  let guest: UInt32
}

/// A packet's header.
struct VsockHeader: Sendable, Hashable {
  static let size = 44

  /// Types of sockets.
  static let stream: UInt16 = 1

  enum Operation {
    static let request: UInt16 = 1
    static let response: UInt16 = 2
    static let reset: UInt16 = 3
    static let shutdown: UInt16 = 4
    static let data: UInt16 = 5
    static let creditUpdate: UInt16 = 6
    static let creditRequest: UInt16 = 7
  }

  /// Flags of a shutdown: what its sender has stopped doing.
  enum Shutdown {
    static let receive: UInt32 = 1
    static let send: UInt32 = 2
    static let both: UInt32 = 3
  }

  var source: UInt64
  var destination: UInt64
  var sourcePort: UInt32
  var destinationPort: UInt32
  /// Bytes behind the header.
  var length: UInt32 = 0
  var type = stream
  var operation: UInt16
  var flags: UInt32 = 0
  /// The sender's credit: its buffer's size, and the bytes that have left it so far.
  var bufferSize: UInt32 = 0
  var forwarded: UInt32 = 0

  init(
    source: UInt64, destination: UInt64, sourcePort: UInt32, destinationPort: UInt32,
    operation: UInt16
  ) {
    (self.source, self.destination) = (source, destination)
    (self.sourcePort, self.destinationPort) = (sourcePort, destinationPort)
    self.operation = operation
  }

  /// nil if there are too few bytes.
  init?(_ bytes: [UInt8]) {
    guard let source = bytes.load(UInt64.self, at: 0),
      let destination = bytes.load(UInt64.self, at: 8),
      let sourcePort = bytes.load(UInt32.self, at: 16),
      let destinationPort = bytes.load(UInt32.self, at: 20),
      let length = bytes.load(UInt32.self, at: 24), let type = bytes.load(UInt16.self, at: 28),
      let operation = bytes.load(UInt16.self, at: 30), let flags = bytes.load(UInt32.self, at: 32),
      let bufferSize = bytes.load(UInt32.self, at: 36),
      let forwarded = bytes.load(UInt32.self, at: 40)
    else { return nil }
    self.init(
      source: source, destination: destination, sourcePort: sourcePort,
      destinationPort: destinationPort, operation: operation)
    (self.length, self.type, self.flags) = (length, type, flags)
    (self.bufferSize, self.forwarded) = (bufferSize, forwarded)
  }

  var bytes: [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(Self.size)
    bytes.append(little: source)
    bytes.append(little: destination)
    bytes.append(little: sourcePort)
    bytes.append(little: destinationPort)
    bytes.append(little: length)
    bytes.append(little: type)
    bytes.append(little: operation)
    bytes.append(little: flags)
    bytes.append(little: bufferSize)
    bytes.append(little: forwarded)
    return bytes
  }

  /// The answer to a packet without a connection.
  var refusal: VsockHeader {
    var header = VsockHeader(
      source: destination, destination: source, sourcePort: destinationPort,
      destinationPort: sourcePort, operation: Operation.reset)
    header.type = type
    return header
  }
}
