// SPDX-License-Identifier: Apache-2.0
//
// The oracle's program: see OracleCommand.

import Foundation
import Oracle

exit(try OracleCommand().run(Array(CommandLine.arguments.dropFirst())))
