// SPDX-License-Identifier: Apache-2.0

import X86
import X86Decoder

package final class BlockCache {
  let cpu: CPU
  init(cpu: CPU) { self.cpu = cpu }
}
