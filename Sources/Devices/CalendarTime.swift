// SPDX-License-Identifier: Apache-2.0
//
// Dates for the real-time clock: calendar time, and seconds since 1970.

/// A date and time of day in UTC, in the Gregorian calendar.
package struct CalendarTime: Sendable, Hashable {
  package var year: Int
  /// 1 to 12.
  package var month: Int
  /// 1 to 31.
  package var day: Int
  package var hour: Int
  package var minute: Int
  package var second: Int

  /// Days before each month of a year that starts in March.
  private static let daysBeforeMonth = [0, 31, 61, 92, 122, 153, 184, 214, 245, 275, 306, 337]
  private static let daysPer400Years = 146_097
  /// Days from 1 March of the year 0 to 1 January 1970.
  private static let epoch = 719_468

  /// Splits seconds since 1970. Years count from March, which puts the leap day at the end.
  package init(secondsSince1970 seconds: Int64) {
    var days = Int(seconds / 86400)
    var rest = Int(seconds % 86400)
    if rest < 0 {
      rest += 86400
      days -= 1
    }
    (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60)
    days += Self.epoch
    let era = (days >= 0 ? days : days - Self.daysPer400Years + 1) / Self.daysPer400Years
    let dayOfEra = days - era * Self.daysPer400Years
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let marchMonth = (Self.daysBeforeMonth.lastIndex { $0 <= dayOfYear }) ?? 0
    day = dayOfYear - Self.daysBeforeMonth[marchMonth] + 1
    month = marchMonth < 10 ? marchMonth + 3 : marchMonth - 9
    year = yearOfEra + era * 400 + (month <= 2 ? 1 : 0)
  }

  /// Days since 1970.
  private var days: Int {
    let marchYear = month <= 2 ? year - 1 : year
    let marchMonth = (month + 9) % 12
    let era = (marchYear >= 0 ? marchYear : marchYear - 399) / 400
    let yearOfEra = marchYear - era * 400
    return era * Self.daysPer400Years + yearOfEra * 365 + yearOfEra / 4 - yearOfEra / 100
      + Self.daysBeforeMonth[marchMonth] + day - 1 - Self.epoch
  }

  /// Seconds since 1970.
  package var secondsSince1970: Int64 {
    Int64(days) * 86400 + Int64(hour * 3600 + minute * 60 + second)
  }

  /// 0 is Sunday.
  package var dayOfWeek: Int { ((days + 4) % 7 + 7) % 7 }
}
