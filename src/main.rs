use std::process::ExitCode;

fn main() -> ExitCode {
    eo_mount::cli::run()
}
