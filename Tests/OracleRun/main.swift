// SPDX-License-Identifier: Apache-2.0
//
// The oracle outside of the test runner, for long runs: see OracleCommand for what it obeys.

import Foundation
import Oracle

let report = try OracleCommand().run()
exit(report.mismatches.isEmpty ? 0 : 1)
