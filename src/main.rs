fn main() -> std::process::ExitCode {
    pcluster::cli::run()
}
