// SPDX-License-Identifier: Apache-2.0
//
// The error of everything that reads kernels, initial RAM disks and payloads.

/// Why something cannot be loaded, in one line that names the thing and how to fix it.
package struct LoadError: Error, Hashable, CustomStringConvertible {
  package let description: String
  package init(_ description: String) { self.description = description }
}
