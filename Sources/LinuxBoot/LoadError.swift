// SPDX-License-Identifier: Apache-2.0
//
// The error of all code that reads kernels, initial RAM disks and payloads.

/// Why something cannot be loaded: one line that names the file and a remedy.
package struct LoadError: Error, Hashable, CustomStringConvertible {
  package let description: String
  package init(_ description: String) { self.description = description }
}
