use std::path::Path;

use deposits::intake::{FileFormat, Taken, take_file};
use tidegate::Tidegate;

async fn take(tide: &Tidegate, path: &Path, text: &str) -> (Taken, Vec<(u64, String)>) {
    std::fs::write(path, text).unwrap();
    let mut reports = Vec::new();
    let report = |number: u64, why: &str| reports.push((number, why.to_owned()));
    let taken = take_file(tide, path, FileFormat::of(path).unwrap(), report).await.unwrap();
    reports.sort();
    (taken, reports)
}

async fn open(directory: &Path) -> Tidegate {
    Tidegate::builder().housekeeping(false).open(directory.join("d.db")).await.unwrap()
}

#[tokio::test]
async fn wrong_lines_are_reported_with_their_numbers_and_the_rest_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let tide = open(directory.path()).await;
    let text = "{\"deposit\":\"d1\",\"account\":\"a\",\"cents\":1}\n\
                not json\n\
                \n\
                {\"deposit\":\"d2\",\"account\":\"a\",\"cents\":-5}\n\
                {\"account\":\"a\",\"cents\":5}\n\
                {\"deposit\":\"d1\",\"account\":\"a\",\"cents\":2}\n\
                {\"deposit\":\"d3\",\"account\":\"a\",\"cents\":3}\n\
                {\"deposit\":\"d1\",\"account\":\"a\",\"cents\":1}";
    let (taken, reports) = take(&tide, &directory.path().join("in.ndjson"), text).await;
    assert_eq!(taken, Taken { lines: 7, added: 2, known: 1, wrong: 4 });
    let numbers: Vec<u64> = reports.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [2, 4, 5, 6]);
    assert!(reports[1].1.contains("-5 cents"), "{reports:?}");
    assert!(reports[2].1.contains("deposit is missing"), "{reports:?}");
}

#[tokio::test]
async fn a_file_taken_again_adds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let tide = open(directory.path()).await;
    let mut text = "deposit,account,cents,card\n".to_owned();
    for number in 0..1_200 {
        text.push_str(&format!("dep-{number},acct-{},{},\n", number % 7, number + 1));
    }
    let path = directory.path().join("in.csv");
    let half: String = text.lines().take(700).map(|line| format!("{line}\n")).collect();
    assert_eq!(take(&tide, &path, &half).await.0, Taken { lines: 699, added: 699, known: 0, wrong: 0 });
    assert_eq!(take(&tide, &path, &text).await.0, Taken { lines: 1_200, added: 501, known: 699, wrong: 0 });
    assert_eq!(take(&tide, &path, &text).await.0, Taken { lines: 1_200, added: 0, known: 1_200, wrong: 0 });
}

#[tokio::test]
async fn a_csv_without_its_columns_is_refused_whole() {
    let directory = tempfile::tempdir().unwrap();
    let tide = open(directory.path()).await;
    let path = directory.path().join("in.csv");
    std::fs::write(&path, "dep-1,acct-1,100\n").unwrap();
    let error = take_file(&tide, &path, FileFormat::Csv, |_, _| {}).await.unwrap_err();
    assert!(format!("{error:#}").contains("no column \"deposit\""), "{error:#}");
}
